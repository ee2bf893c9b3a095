"""One swapd per home: a file lock that the kernel frees when its holder is gone."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil

from swapd.system.process_identity import start_time

LENGTH = 4096
"""Bytes that the lock's text is padded to."""


class LockHolder(msgspec.Struct, frozen=True):
    """Who holds a home, as written into its lock file."""

    pid: int
    born: str
    """Tells the process from a later one with the same number: see `birth_of`."""
    endpoint: str
    log: str
    config: str = ""
    """The configuration that it serves."""
    closing: bool = False
    """It finishes what it serves and takes nothing new."""
    socket: str = ""
    """Where it answers HTTP without asking for a key; empty where it does not."""

    def alive(self) -> psutil.Process | None:
        """The process, if it is still the one that wrote this."""
        if not self.born or start_time(self.pid) != self.born:
            return None
        try:
            return psutil.Process(self.pid)
        except psutil.NoSuchProcess:
            return None


class LockHeldError(Exception):
    """Another swapd serves this home. `holder` is None while that one is still starting."""

    def __init__(self, holder: LockHolder | None) -> None:
        super().__init__(f"swapd runs already{f' as pid {holder.pid}' if holder else ''}")
        self.holder = holder


class InstanceLock:
    """The lock on `.swapd/lock`. Held from the constructor until the process ends."""

    def __init__(self, state: Path) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise LockHeldError(read_holder(state)) from None
        try:
            self._write(b"")
        except OSError:
            os.ftruncate(self._fd, 0)

    def announce(
        self,
        endpoint: str,
        log: Path,
        config: Path,
        socket: Path | None = None,
        closing: bool = False,
    ) -> None:
        """Write down who holds the lock, where it answers, and whether it is about to end.

        Raises OSError where a disk is so full that not even a new file's first block fits.
        """
        pid, inner = os.getpid(), str(socket or "")
        holder = LockHolder(pid, start_time(pid), endpoint, str(log), str(config), closing, inner)
        self._write(msgspec.json.encode(holder))

    def _write(self, content: bytes) -> None:
        """In place and always as long, for a block that the file has needs no room on the disk."""
        os.pwrite(self._fd, content.ljust(LENGTH - 1) + b"\n", 0)

    def retire(self) -> None:
        """Nobody is served any more. The lock itself goes with the process, as its last sign."""
        os.ftruncate(self._fd, 0)


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the lock on a file that is there for that alone; waits while another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wait_until_free(state: Path) -> None:
    """Block until the process that holds this home's lock has ended."""
    with (state / "lock").open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def read_holder(state: Path) -> LockHolder | None:
    """Who holds this home by the word of its lock file; None when nobody does or it can't be read.

    The word alone proves nothing, for its writer may be dead: ask `LockHolder.alive`.
    """
    try:
        return msgspec.json.decode((state / "lock").read_bytes(), type=LockHolder)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None
