"""The service under a real systemd, which runs in its own namespaces.

It needs root, for the namespaces. Nothing of the machine's own systemd is touched or even seen.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.user import User
from tests.daemon import ROOT

SYSTEMD = next(
    (p for p in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd") if Path(p).exists()), ""
)
CGROUPS = next(
    (p for p in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if Path(p, "cgroup.procs").exists()),
    "",
)
INSIDE = f"""
umount {CGROUPS} && mount -t cgroup2 cgroup2 {CGROUPS} || exit 77
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system /run/user/0 && chmod 700 /run/user/0
export XDG_RUNTIME_DIR=/run/user/0
{SYSTEMD} --user >systemd.log 2>&1 &
until [ -S /run/user/0/systemd/private ]; do
  kill -0 $! 2>/dev/null || exit 77
  sleep 0.05
done
"""
"""Script that starts a systemd for this user, with no other one visible."""


@pytest.fixture
def cgroup(tmp_path: Path) -> Iterator[Path]:
    """Create a control group for all processes; remove it afterwards, with its subgroups."""
    if not (SYSTEMD and CGROUPS and sys.platform == "linux" and os.getuid() == 0):
        pytest.skip("there is no systemd, or we are not root")
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare")
    group = Path(CGROUPS, f"swapd-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"there can be no control group: {error}")
    yield group
    for folder, _, _ in os.walk(group, topdown=False):
        Path(folder).rmdir()


def _run(user: User, cgroup: Path, script: str) -> str:
    """Return the output of the script; skip the test without namespaces."""
    (user.home / "inside").write_text(INSIDE + script)
    enter = f"echo $$ >{cgroup}/cgroup.procs && exec unshare -m -p -f -C --mount-proc sh ./inside"
    done = subprocess.run(
        ["sh", "-c", enter],
        cwd=user.home,
        env=user.environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip(f"namespaces can't be had here: {done.stderr}")
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def test_it_is_installed_used_restarted_and_removed(user: User, cgroup: Path) -> None:
    model = ROOT / "model"
    script = f"""
    step() {{ echo "--- $*"; "$@" </dev/null 2>&1; echo "[$?]"; }}
    main() {{ systemctl --user show --property=MainPID --value swapd.service; }}
    step {model} service install
    systemctl --user is-enabled swapd.service
    step {model} service status
    first=$(main)
    step {model} restart
    second=$(main); [ $first != $second ] && echo another one
    step {model} stop
    step systemctl --user is-active swapd.service
    step {model} service start
    kill -KILL $(main)
    until {model} status >/dev/null; do sleep 0.1; done
    step {model} service stop
    step {model} status
    step {model} service uninstall
    step systemctl --user is-enabled swapd.service
    step {model} service status
    """
    output = _run(user, cgroup, script)
    steps = [tuple(step.rpartition("\n[")[::2]) for step in output.split("--- ")[1:]]
    outputs = {i: text for i, (text, _) in enumerate(steps)}
    codes = [int(re.match(r"\d+", code)[0]) for _, code in steps]  # type: ignore[index]
    unit = user.home / "user/.config/systemd/user/swapd.service"
    runs = rf"swapd runs at http://127.0.0.1:{user.port} \(pid \d+\)"
    assert f"installed {unit}" in outputs[0] and re.search(runs, outputs[0])
    assert "]\nenabled\n" in output
    assert "Active: active (running)" in outputs[1] and "swapd.daemon" in outputs[1]
    assert re.search(runs, outputs[2]) and "another one" in output
    assert "swapd has stopped" in outputs[3] and outputs[4].endswith("\ninactive")
    assert re.search(runs, outputs[5])
    assert "the service was stopped" in outputs[6] and "not running" in outputs[7]
    assert f"removed {unit}" in outputs[8] and not unit.exists()
    assert "not installed" in outputs[10]
    assert codes == [0, 0, 0, 0, 3, 0, 0, 3, 0, codes[9], 3] and codes[9] != 0


def test_a_service_that_cannot_start_is_reported_and_removed(user: User, cgroup: Path) -> None:
    (user.home / "swapd").mkdir()
    user.config.write_text("models: [")
    unit = user.home / "user/.config/systemd/user/swapd.service"
    script = f"""
    {ROOT}/model service install </dev/null 2>&1; echo "[$?]"
    systemctl --user list-units --all --plain --no-legend 'swapd*'
    find {unit.parents[1]} -name 'swapd*'
    """
    output = _run(user, cgroup, script)
    assert "systemctl --user enable --now swapd.service failed" in output
    assert output.endswith("[1]\n"), output
    assert not unit.exists()
