"""File lock that allows one swapd per data directory; the kernel releases it with its holder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil

from swapd.system.private_files import open_private, private_directory
from swapd.system.process_identity import start_time

FIRST_PID = 2
"""Lowest pid of a swapd: to kill(2), 1 is init, 0 and -1 are whole groups of processes."""
LENGTH = 4096
"""Bytes that the lock file's content is padded to."""


class LockHolder(msgspec.Struct, frozen=True):
    """Holder of a data directory, as written into its lock file."""

    pid: int
    started: str
    """Start time, which tells the process from a later one with the same pid: `start_time`."""
    endpoint: str
    """Base URL of its API."""
    log: str
    """Path of its log file."""
    config: str = ""
    """Path of its configuration."""
    closing: bool = False
    """True while it shuts down: it finishes its requests and accepts no new ones."""
    socket: str = ""
    """Path of the socket for HTTP without an API key; empty without one."""

    def alive(self) -> psutil.Process | None:
        """Return the process, or None if it is no longer the one that wrote the file."""
        if self.pid < FIRST_PID or not self.started or start_time(self.pid) != self.started:
            return None
        try:
            return psutil.Process(self.pid)
        except (psutil.NoSuchProcess, ValueError, OverflowError):
            return None


class LockHeldError(Exception):
    """Another swapd holds the lock. `holder` is None while that one is still starting."""

    def __init__(self, holder: LockHolder | None) -> None:
        super().__init__(f"swapd runs already{f' as pid {holder.pid}' if holder else ''}")
        self.holder = holder


class InstanceLock:
    """Lock on `.swapd/lock`, held from the constructor until the process ends."""

    def __init__(self, state: Path) -> None:
        private_directory(state)
        self._fd = open_private(state / "lock", os.O_RDWR | os.O_CREAT)
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
        """Write the holder of the lock, its address, and whether it is shutting down.

        Raises OSError when a full disk has no space for a new file's first block.
        """
        pid, path = os.getpid(), str(socket or "")
        holder = LockHolder(pid, start_time(pid), endpoint, str(log), str(config), closing, path)
        self._write(msgspec.json.encode(holder))

    def _write(self, content: bytes) -> None:
        """Write in place at a constant length: an allocated block needs no space on the disk."""
        os.pwrite(self._fd, content.ljust(LENGTH - 1) + b"\n", 0)

    def retire(self) -> None:
        """Clear the holder after the last request; the lock is held until the process ends."""
        os.ftruncate(self._fd, 0)


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a lock file; block while another process holds it."""
    private_directory(path.parent)
    handle = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def wait_until_free(state: Path) -> None:
    """Block until the process that holds the lock has ended."""
    handle = open_private(state / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    finally:
        os.close(handle)


def read_holder(state: Path) -> LockHolder | None:
    """Return the holder named in the lock file; None if there is none or it can't be read.

    The file may be outdated, as its writer may have died: check `LockHolder.alive`.
    """
    try:
        return msgspec.json.decode((state / "lock").read_bytes(), type=LockHolder)
    except (OSError, msgspec.DecodeError, UnicodeError, RecursionError):
        return None
