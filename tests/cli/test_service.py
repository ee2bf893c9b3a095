"""The service and cron: the files are correct for the service managers and followed by them.

The service managers themselves are stood in for by scripts that note how they are called: nothing
of this machine's is touched.
"""

from __future__ import annotations

import os
import plistlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from swapd.cli import service
from swapd.paths import Paths
from tests.cli.user import User
from tests.daemon import ROOT

linux_only = pytest.mark.skipif(sys.platform == "darwin", reason="systemd is Linux's")
AWKWARD = 'a "home" with 100% of $HOME & <everything>'


@pytest.fixture
def tools(user: User) -> Path:
    """Put stand-ins in front of the PATH; return the file that records their calls."""
    folder, calls = user.home / "bin", user.home / "calls"
    folder.mkdir()
    table = user.home / "crontab"
    command = f"{shlex.quote(sys.executable)} {ROOT}/tests/cli/systemctl.py {user.home}"
    (folder / "systemctl").write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    for name in ("loginctl", "launchctl"):
        text = f'#!/bin/sh\necho {name} "$@" >> {calls}\n[ ! -e {user.home}/refuse-{name} ] || '
        text += "{ echo no bus >&2; exit 1; }\n"
        (folder / name).write_text(text)
    (folder / "crontab").write_text(
        f'#!/bin/sh\nif [ "$1" = -l ]; then cat {table} 2>/dev/null || '
        f"{{ echo no crontab for you >&2; exit 1; }}; else cat > {table}; fi\n"
    )
    for script in folder.iterdir():
        script.chmod(0o755)
    user.environ["PATH"] = f"{folder}:{user.environ['PATH']}"
    calls.touch()
    return calls


def _unit(user: User) -> Path:
    return user.home / "user/.config/systemd/user/swapd.service"


@linux_only
def test_a_dry_run_prints_and_does_nothing(user: User, tools: Path) -> None:
    output = user.says("service", "install", "--dry-run")
    assert output.startswith(f"# {_unit(user)}\n")
    assert f'Environment="SWAPD_HOME={user.home}/swapd"' in output
    assert "# then: systemctl --user enable --now swapd.service" in output
    assert "disable --now" in user.says("service", "uninstall", "--dry-run")
    for verb in ("start", "stop", "status"):
        assert f"{verb} swapd.service" in user.says("service", verb, "--dry-run")
    assert not _unit(user).exists()
    assert tools.read_text() == ""


@linux_only
def test_install_use_and_uninstall(user: User, tools: Path) -> None:
    assert user.fails("service", "status", status=3) == ""
    assert "is not installed" in user.fails("service", "start")
    assert "is not installed" in user.fails("service", "stop")
    installed, runs, linger = user.says("service", "install").splitlines()
    assert installed == f"installed {_unit(user)}"
    assert re.fullmatch(rf"swapd runs at http://127.0.0.1:{user.port} \(pid \d+\)", runs)
    assert "not logged in" in linger
    assert "Restart=on-failure" in _unit(user).read_text()
    assert user.says("service", "install").startswith(f"installed already: {_unit(user)}\n")
    user.says("service", "stop")
    assert user.types("status").returncode == 3
    assert user.says("service", "start").startswith("swapd runs at ")
    user.says("service", "status")
    assert user.says("service", "uninstall") == f"removed {_unit(user)}\n"
    assert user.types("status").returncode == 3
    assert user.says("service", "uninstall") == "the service is not installed\n"
    assert not _unit(user).exists()
    assert tools.read_text().splitlines() == [
        "systemctl --user daemon-reload",
        "systemctl --user enable --now swapd.service",
        "loginctl enable-linger",
        "systemctl --user stop swapd.service",
        "systemctl --user start swapd.service",
        "systemctl --user --no-pager status swapd.service",
        "systemctl --user disable --now swapd.service",
        "systemctl --user daemon-reload",
    ]


@linux_only
def test_a_restart_goes_through_the_manager_that_runs_it(user: User, tools: Path) -> None:
    user.says("service", "install")
    first = (user.home / "main-pid").read_text()
    for words in ((), ("--now",)):
        tools.write_text("")
        output = user.says("restart", *words)
        second = (user.home / "main-pid").read_text()
        assert second != first
        assert output == f"swapd runs at http://127.0.0.1:{user.port} (pid {second})\n"
        assert "systemctl --user start swapd.service" in tools.read_text()
        first = second
    # One that it does not run is started as it was, and that is reported.
    user.says("service", "stop")
    tools.write_text("")
    assert "service start it would be" in user.types("start").stderr
    assert "swapd runs at" in user.says("restart")
    assert "systemctl --user start" not in tools.read_text()
    user.says("stop")


def test_a_restart_does_not_take_a_foreground_away(user: User) -> None:
    user.types("sync")
    serving = subprocess.Popen(
        [str(ROOT / "model"), "serve"], env=user.environ, stderr=subprocess.PIPE, text=True
    )
    assert serving.stderr is not None
    assert "swapd serves 2 models" in serving.stderr.readline()
    output = user.fails("restart")
    assert re.match(r"swapd: swapd \(pid \d+\) runs in the foreground of .*: restart it", output)
    assert serving.poll() is None
    user.says("stop")
    assert serving.wait(timeout=20) == 0
    serving.stderr.close()


@linux_only
def test_a_failure_of_the_manager_is_reported_and_undone(user: User, tools: Path) -> None:
    refuse = user.home / "refuse-systemctl"
    refuse.touch()
    output = user.fails("service", "install")
    assert output == "swapd: systemctl --user daemon-reload failed: no bus\n"
    assert not _unit(user).exists()
    refuse.unlink()
    (user.home / "refuse-loginctl").touch()
    done = user.types("service", "install")
    assert done.returncode == 0
    assert "only while you are logged in: loginctl enable-linger failed" in done.stderr


@linux_only
def test_a_swapd_that_runs_already_is_not_doubled(user: User, tools: Path) -> None:
    user.says("start")
    assert "swapd runs already (pid" in user.fails("service", "install")
    assert not _unit(user).exists()
    assert "swapd runs already at" in user.says("service", "start")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
def test_systemd_finds_no_fault_with_the_unit(tmp_path: Path) -> None:
    home = Paths(tmp_path / AWKWARD)
    home.folder.mkdir()
    unit = tmp_path / "swapd.service"
    unit.write_text(service.systemd(home, {}).text)
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(unit)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_agent_is_an_equivalent_property_list(tmp_path: Path) -> None:
    home = Paths(tmp_path / AWKWARD)
    agent = plistlib.loads(service.launchd(home).text.encode())
    assert agent["Label"] == "swapd"
    assert agent["ProgramArguments"] == [sys.executable, "-I", "-m", "swapd", "serve"]
    assert agent["EnvironmentVariables"]["SWAPD_HOME"] == str(home.folder)
    assert agent["RunAtLoad"] is True
    assert agent["ProcessType"] == "Interactive"
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    if shutil.which("plutil"):
        (tmp_path / "swapd.plist").write_text(service.launchd(home).text)
        subprocess.run(["plutil", "-lint", str(tmp_path / "swapd.plist")], check=True)


@linux_only
def test_the_unit_restarts_swapd_after_a_crash_and_not_after_a_stop(
    user: User, tools: Path
) -> None:
    """`Restart=on-failure` restarts a process whose exit status is not 0."""
    unit = user.says("service", "install", "--dry-run")
    assert re.findall("^Restart=(.*)$", unit, re.MULTILINE) == ["on-failure"]
    (line,) = re.findall("^ExecStart=(.*)$", unit, re.MULTILINE)
    variables = [shlex.split(v)[0] for v in re.findall("^Environment=(.*)$", unit, re.MULTILINE)]
    environ = {**user.environ, **dict(v.split("=", 1) for v in variables)}
    for end, status in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        serving = subprocess.Popen(
            shlex.split(line), env=environ, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert serving.stderr is not None and serving.stdout is not None
        while b"swapd serves" not in serving.stderr.readline():
            assert serving.poll() is None
        if end is signal.SIGTERM:
            assert user.says("stop") == "swapd has stopped\n"
        else:
            serving.kill()
        assert serving.wait(timeout=20) == status
        serving.stdout.close()
        serving.stderr.close()


def test_cron_line_is_added_to_the_crontab_and_removed_again(user: User, tools: Path) -> None:
    table = user.home / "crontab"
    others = "MAILTO=me\n5 4 * * * /usr/bin/true # swapd is fine\n"
    assert user.types("cron", "status").returncode == 3
    table.write_text(others)
    assert user.says("cron", "install", "--dry-run").startswith("0 * * * * ")
    assert table.read_text() == others
    output = user.says("cron", "install")
    assert "swapd runs at" in output
    lines = table.read_text().splitlines()
    assert lines[:2] == others.splitlines()
    assert len(lines) == 3
    assert "swapd runs already" in user.says("cron", "install")
    assert table.read_text().splitlines() == lines
    # As cron would: a shell, nothing in the environment, and % the end of a line.
    called = lines[2].removeprefix("0 * * * * ").replace("\\%", "%").replace(">/dev/null", "")
    run = subprocess.run(
        ["/bin/sh", "-c", called.replace("2>&1", "")],
        env={k: user.environ[k] for k in ("HOME", "SWAPD_PORT")} | _pythonpath(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "swapd runs already" in run.stdout
    assert user.says("cron", "status").startswith("✓ 0 * * * * ")
    assert "would be removed: 0 * * * *" in user.says("cron", "uninstall", "--dry-run")
    assert user.says("cron", "uninstall") == "cron does not start swapd any more\n"
    assert table.read_text() == others
    assert user.says("cron", "uninstall") == "cron does not start swapd\n"


def _pythonpath() -> dict[str, str]:
    """Directory with the swapd under test."""
    return {"PYTHONPATH": str(ROOT)}


def test_missing_tools_are_reported(user: User) -> None:
    (user.home / "bin").mkdir()
    for name in ("python3", "sh", "dirname", "cksum", "cat", "readlink"):
        if found := shutil.which(name):
            (user.home / "bin" / name).symlink_to(found)
    user.environ["PATH"] = str(user.home / "bin")
    tool = "launchctl" if sys.platform == "darwin" else "systemctl"
    assert f"there is no {tool} on this machine" in user.fails("service", "install")
    assert "there is no crontab on this machine" in user.fails("cron", "install")
