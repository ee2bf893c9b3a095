"""The lock of a data directory: one holder, damaged files, full disks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swapd.system.lockfile import InstanceLock, LockHeldError, LockHolder, read_holder
from tests.disk import fill, small_disk

HOLD = (
    "import sys, pathlib\n"
    "from swapd.system.lockfile import InstanceLock\n"
    "lock = InstanceLock(pathlib.Path(sys.argv[1]))\n"
    "lock.announce('http://127.0.0.1:1', pathlib.Path('x.log'), pathlib.Path('c'), None)\n"
    "print(flush=True)\n"
    "sys.stdin.read()\n"
)


def _holder(state: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_the_lock_is_exclusive_and_released_when_its_holder_is_killed(tmp_path: Path) -> None:
    first = _holder(tmp_path)
    try:
        with pytest.raises(LockHeldError) as caught:
            InstanceLock(tmp_path)
        assert caught.value.holder is not None
        assert caught.value.holder.pid == first.pid
        assert caught.value.holder.alive() is not None
    finally:
        _end(first)
    stale = read_holder(tmp_path)
    assert stale is not None
    assert stale.alive() is None
    second = _holder(tmp_path)
    _end(second)
    assert second.pid != first.pid


def test_a_reused_pid_is_not_the_holder() -> None:
    assert LockHolder(os.getpid(), started="x:1", endpoint="", log="").alive() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff"])
def test_a_damaged_lock_file_has_no_holder(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    assert read_holder(tmp_path) is None
    _end(_holder(tmp_path))


def test_a_shutdown_is_announced_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        lock = InstanceLock(disk)
        lock.announce("http://127.0.0.1:1", Path("x.log"), Path("c"))
        fill(disk)
        lock.announce("http://127.0.0.1:1", Path("x.log"), Path("c"), closing=True)
        holder = read_holder(disk)
        assert holder is not None
        assert holder.closing
        lock.retire()
        assert read_holder(disk) is None
