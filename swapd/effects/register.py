"""The register: which workers run, in a file, for the swapd that comes after this one.

The guardian ends them when swapd dies. When both are killed nobody does, and the next start
finds here whom to look for.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import uuid
from pathlib import Path

import msgspec
import psutil

from swapd.system.process_identity import birth_of, program_of, variable_of
from swapd.system.state_files import set_aside

MARK = "SWAPD_MARK"
"""Variable in the environment of all workers: its value is that of one life of swapd."""
BLOCK = 4096
GONE_WITHIN = 5.0
"""Seconds in which a killed process is gone, unless the kernel holds it."""


class Noted(msgspec.Struct, frozen=True):
    """A worker, head of a session of its own, as it was when it was spawned."""

    pid: int
    born: str
    program: str


class Page(msgspec.Struct, frozen=True):
    """What the file holds."""

    mark: str
    workers: list[Noted]


class Register:
    """Keeps the file in step with what runs. A disk that was full from the beginning is told once
    and stops nothing."""

    def __init__(self, file: Path, log: logging.Logger) -> None:
        self.mark = uuid.uuid4().hex
        self._file = file
        self._log = log
        self._workers: dict[int, Noted] = {}
        self._failing = False
        self._descriptor = -1
        self._length = BLOCK
        self._write()  # so that it has its block when the disk is full

    def add(self, pid: int) -> None:
        """A worker was spawned."""
        self._workers[pid] = Noted(pid, birth_of(pid), program_of(pid))
        self._write()

    def remove(self, pid: int) -> None:
        """It has ended, and nothing is left of it."""
        if self._workers.pop(pid, None) is not None:
            self._write()

    def _write(self) -> None:
        """In place, and always as long: a block that the file has needs no room on the disk, and
        to rename one over it can take as long as the disk does, twice for each worker.

        Not forced to the disk: a power cut ends workers too.
        """
        try:
            file = self._opened()
            page = msgspec.json.encode(Page(self.mark, [*self._workers.values()])) + b"\n"
            self._length = max(self._length, -(-len(page) // BLOCK) * BLOCK)
            if os.pwrite(file, page.ljust(self._length), 0) < self._length:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self._failing:
                self._log.warning(
                    "%s can't be written (%s): if swapd and its guardian were both killed now,"
                    " the next start might not find all that is left of them",
                    self._file,
                    error.strerror,
                )
            self._failing = True
        else:
            self._failing = False

    def _opened(self) -> int:
        """The file; another one if somebody has taken it away. It is closed with this process."""
        if self._descriptor >= 0:
            if os.fstat(self._descriptor).st_nlink:
                return self._descriptor
            os.close(self._descriptor)
            self._descriptor = -1
        self._descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o644)
        # What an earlier life left must not show behind our page.
        self._length = max(BLOCK, os.fstat(self._descriptor).st_size)
        return self._descriptor


def reap_left_overs(file: Path, log: logging.Logger) -> None:
    """End what is left of an earlier life, as its register tells; say whom.

    Only those are ended that have number, start and program of a worker in it, or the mark of
    that life in their environment, and what is in such a worker's session. The file is emptied
    by the new life's own register.
    """
    try:
        page = msgspec.json.decode(file.read_bytes(), type=Page)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s can't be read: %s; left-overs are not looked for", file, error.strerror)
        return
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        set_aside(file, error, log)
        return
    left: list[int] = []
    for noted in page.workers:
        members = _members(noted, page.mark)
        if members:
            log.warning("an earlier swapd left %s (pid %d): killed", noted.program, noted.pid)
        left += members
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError as error:
            log.warning("the left-over %d could not be killed: %s", pid, error.strerror)
    _, stuck = psutil.wait_procs(_processes(left), timeout=GONE_WITHIN)
    for process in stuck:
        log.warning("the left-over %d is still there: the kernel holds it", process.pid)


def _members(noted: Noted, mark: str) -> list[int]:
    """Who is left of this worker: itself, and whoever is in its session or group."""
    head = birth_of(noted.pid) == noted.born and (
        program_of(noted.pid) == noted.program or variable_of(noted.pid, MARK) == mark
    )
    return [
        pid
        for pid in psutil.pids()
        if _belongs(pid, noted.pid) and (head or variable_of(pid, MARK) == mark)
    ]


def _belongs(pid: int, head: int) -> bool:
    try:
        return head in (os.getsid(pid), os.getpgid(pid)) and birth_of(pid) != ""
    except OSError:
        return False


def _processes(pids: list[int]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        try:
            found.append(psutil.Process(pid))
        except psutil.NoSuchProcess:
            continue
    return found
