"""`./model` before the installation: its requirements, and the messages when they are missing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon import ROOT, eventually

TOOLS = (
    *("sh", "dirname", "readlink", "cksum", "cat", "tail", "sleep", "env", "kill"),
    *("mkdir", "cp", "chmod"),
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Create a checkout with only the files that the script reads."""
    folder = tmp_path / "check out"
    folder.mkdir()
    for name in ("model", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    return folder


def _tools(folder: Path, **scripts: str) -> str:
    """Return a PATH with a few tools and these scripts, and nothing else."""
    tools = folder.parent / "bin"
    tools.mkdir(exist_ok=True)
    for name in TOOLS:
        found = shutil.which(name)
        if found and not (tools / name).is_symlink():
            (tools / name).symlink_to(found)
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    return str(tools)


def _call(folder: Path, path: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(folder / "model"), *words],
        env={"PATH": path, "HOME": str(folder.parent), "HERE": str(folder), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


PYTHON = f'exec {sys.executable} "$@"'
OLD = 'case "$1" in --version) echo Python 3.9.1;; *) exit 1;; esac'


def test_without_a_python_that_is_new_enough(checkout: Path) -> None:
    done = _call(checkout, _tools(checkout, python3=OLD), "start")
    assert done.returncode == 1
    assert done.stderr == (
        "swapd: Python 3.10 or newer is needed, and there is none on the PATH (python3 is"
        " Python 3.9.1); install one, or name it in SWAPD_PYTHON\n"
    )
    assert not (checkout / ".venv").exists()


def test_without_a_compiler(checkout: Path) -> None:
    done = _call(checkout, _tools(checkout, python3=PYTHON), "start")
    assert done.returncode == 1
    assert done.stderr.startswith("swapd: llama.cpp is compiled on first use and there is no C++")
    assert "apt install g++" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (checkout / ".venv").exists()


def test_an_installation_that_fails_shows_the_end_of_its_story(checkout: Path) -> None:
    uv = 'echo "uv says: no such wheel" >&2; exit 1'
    path = _tools(checkout, python3=PYTHON, uv=uv, **{"c++": "exit 0"})
    done = _call(checkout, path, "start")
    assert done.returncode == 1
    assert "uv says: no such wheel" in done.stderr
    assert done.stderr.rstrip().endswith(f"its full log is {checkout}/.venv-install.log")


def _stand_in(checkout: Path) -> None:
    """Create an environment whose python only prints its arguments."""
    python = checkout / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$SWAPD_HOME|$PWD|$*"\n')
    python.chmod(0o755)
    locks = sorted((checkout / "requirements").glob("*.txt"))
    content = b"".join(file.read_bytes() for file in (checkout / "pyproject.toml", *locks))
    summed = subprocess.run(["cksum"], input=content, capture_output=True, check=True)
    (checkout / ".venv/.installed").write_bytes(summed.stdout)


def test_before_it_is_installed_nothing_runs_and_nothing_is_compiled(checkout: Path) -> None:
    path = _tools(checkout)
    printed = {
        ("status",): (3, "✗ swapd is not running\n"),
        ("status", "--json"): (3, '{"running":false}\n'),
        ("stop",): (0, "swapd is not running\n"),
        ("stop", "--now"): (0, "swapd is not running\n"),
    }
    for words, (status, output) in printed.items():
        done = _call(checkout, path, *words)
        assert (done.returncode, done.stdout, done.stderr) == (status, output, "")
    assert not (checkout / ".venv").exists()


def test_an_older_installation_does_for_stop_and_status(checkout: Path) -> None:
    _stand_in(checkout)
    (checkout / ".venv/.installed").write_text("of another pyproject.toml")
    for word in ("stop", "status"):
        assert f"-m swapd {word}" in _call(checkout, _tools(checkout), word).stdout


UV = """
echo "$*" >>"$HERE/calls"
case $1 in
  venv) read -r go <"$HERE/gate"; mkdir -p "$HERE/.venv/bin" ;;
  pip) cp "$HERE/stand-in" "$HERE/.venv/bin/python"; chmod +x "$HERE/.venv/bin/python" ;;
esac
"""


def _start(checkout: Path, path: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(checkout / "model"), "start"],
        env={"PATH": path, "HOME": str(checkout.parent), "HERE": str(checkout)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


@pytest.mark.parametrize("killed", [False, True])
def test_of_two_first_starts_one_installs_and_one_waits(checkout: Path, killed: bool) -> None:
    """The first stands still at a FIFO; it goes on, or it is killed there with its installer."""
    os.mkfifo(checkout / "gate")
    (checkout / "stand-in").write_text('#!/bin/sh\necho "started: $*"\n')
    path = _tools(checkout, python3=PYTHON, uv=UV, **{"c++": "exit 0"})
    first = _start(checkout, path)
    calls = checkout / "calls"
    eventually(calls.exists)
    second = _start(checkout, path)
    assert second.stderr is not None
    assert "another call is installing; waiting" in second.stderr.readline()
    if killed:
        os.killpg(first.pid, signal.SIGKILL)
        eventually(lambda: calls.read_text().count("venv --allow") == 2)
    with (checkout / "gate").open("w") as gate:
        gate.write("go\n")
    ends = [process.communicate(timeout=60) for process in (first, second)]
    assert ends[1][0] == "started: -I -m swapd start\n"
    assert second.returncode == 0
    assert (first.returncode == 0) != killed
    assert calls.read_text().count(f"--no-deps -e {checkout}") == 1


def test_once_installed_it_hands_over_also_through_a_link(checkout: Path) -> None:
    _stand_in(checkout)
    (checkout.parent / "link").symlink_to(checkout / "model")
    path = _tools(checkout)
    for script in (checkout / "model", checkout.parent / "link"):
        done = subprocess.run(
            [script, "status", "--json"],
            env={"PATH": path},
            cwd=checkout.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == f"{checkout}|{checkout.parent}|-I -m swapd status --json\n"


@pytest.mark.parametrize("changed", ["pyproject.toml", "requirements/base.txt"])
def test_a_changed_project_is_installed_anew(checkout: Path, changed: str) -> None:
    _stand_in(checkout)
    with (checkout / changed).open("a") as file:
        file.write("# changed\n")
    path = _tools(checkout, python3=PYTHON, uv=_RECORDING_UV, **{"c++": "exit 0"})
    _call(checkout, path, "start")
    build = checkout / "requirements/build.txt"
    assert _installs(checkout) == [
        f"-DGGML_RPC=ON|{build}|--require-hashes -r {checkout}/requirements/base.txt",
        f"-DGGML_RPC=ON|{build}|--no-deps -e {checkout}",
    ]


def test_the_newest_versions_are_installed_without_the_lock(checkout: Path) -> None:
    path = _tools(checkout, python3=PYTHON, uv=_RECORDING_UV, **{"c++": "exit 0"})
    _call(checkout, path, "start", SWAPD_LOCKED="0")
    assert _installs(checkout) == [f"-DGGML_RPC=ON||-e {checkout}"]


_RECORDING_UV = """
[ "$1" = venv ] && exit 0
shift 4
echo "$CMAKE_ARGS|${UV_BUILD_CONSTRAINT:-}|$*" >>"$HERE/installs"
"""
"""A uv that records the arguments of its installations, and installs nothing."""


def _installs(checkout: Path) -> list[str]:
    return (checkout / "installs").read_text().splitlines()
