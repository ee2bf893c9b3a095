"""The guardian: a small shell that outlives swapd by a moment and ends its workers.

A worker of ours notices the end of its standard input. A foreign one does not, nor do the
children that either may have. So every worker's process group is told to a shell that reads
from a pipe; when swapd is gone, however it went, the pipe ends and the shell kills the groups
that are left. When the shell is killed, another takes its place; for the case that both are, the
register remembers.

The register: which workers run, in a file, for the swapd that comes after this one.

The guardian ends them when swapd dies. When both are killed nobody does, and the next start
finds here whom to look for.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import threading
import uuid
from pathlib import Path

import msgspec
import psutil

from swapd.system.aio import now
from swapd.system.process_identity import environment_variable, program_name, start_time
from swapd.system.state_files import quarantine_file

MARK = "SWAPD_MARK"
"""Variable in the environment of all workers: its value is that of one life of swapd."""
BLOCK = 4096
GONE_WITHIN = 5.0
"""Seconds in which a killed process is gone, unless the kernel holds it."""


class PidRecord(msgspec.Struct, frozen=True):
    """A worker, head of a session of its own, as it was when it was spawned."""

    pid: int
    born: str
    program: str


class PidFile(msgspec.Struct, frozen=True):
    """What the file holds."""

    mark: str
    workers: list[PidRecord]


class PidRegistry:
    """Keeps the file in step with what runs. A disk that was full from the beginning is told once
    and stops nothing."""

    def __init__(self, file: Path, log: logging.Logger) -> None:
        self.mark = uuid.uuid4().hex
        self._file = file
        self._log = log
        self._workers: dict[int, PidRecord] = {}
        self._failing = False
        self._descriptor = -1
        self._length = BLOCK
        self._write()  # so that it has its block when the disk is full

    def add(self, pid: int) -> None:
        """A worker was spawned."""
        self._workers[pid] = PidRecord(pid, start_time(pid), program_name(pid))
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
            page = msgspec.json.encode(PidFile(self.mark, [*self._workers.values()])) + b"\n"
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


def kill_orphans(file: Path, log: logging.Logger) -> None:
    """End what is left of an earlier life, as its register tells; say whom.

    Only those are ended that have number, start and program of a worker in it, or the mark of
    that life in their environment, and what is in such a worker's session. The file is emptied
    by the new life's own register.
    """
    try:
        page = msgspec.json.decode(file.read_bytes(), type=PidFile)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s can't be read: %s; left-overs are not looked for", file, error.strerror)
        return
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        quarantine_file(file, error, log)
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


def _members(noted: PidRecord, mark: str) -> list[int]:
    """Who is left of this worker: itself, and whoever is in its session or group."""
    head = start_time(noted.pid) == noted.born and (
        program_name(noted.pid) == noted.program or environment_variable(noted.pid, MARK) == mark
    )
    return [
        pid
        for pid in psutil.pids()
        if _belongs(pid, noted.pid) and (head or environment_variable(pid, MARK) == mark)
    ]


def _belongs(pid: int, head: int) -> bool:
    try:
        return head in (os.getsid(pid), os.getpgid(pid)) and start_time(pid) != ""
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


SCRIPT = """
trap '' INT TERM HUP
groups=
while read -r op group; do
  case $op in
    +) groups="$groups $group" ;;
    -) kept=
       for g in $groups; do [ "$g" = "$group" ] || kept="$kept $g"; done
       groups=$kept ;;
  esac
done
for g in $groups; do kill -s KILL -- "-$g" 2>/dev/null; done
"""
PAUSE = 1.0
"""Seconds from the start of one shell to that of the next, at least."""


class Guardian:
    """Holds the list of process groups to end when this process is gone."""

    def __init__(self, log: logging.Logger, register: PidRegistry) -> None:
        self._log = log
        self._register = register
        self._groups: dict[int, None] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._shell = _start()
        self._thread = threading.Thread(target=self._replace, name="guardian", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        return self._shell.pid

    @property
    def mark(self) -> str:
        """What this life's workers carry in their environment."""
        return self._register.mark

    def watch(self, group: int) -> None:
        """From now on, `group` ends with this process."""
        with self._lock:
            self._groups[group] = None
            self._tell(f"+ {group}\n")
        self._register.add(group)

    def forget(self, group: int) -> None:
        """The group has ended; its number may come to mean somebody else."""
        with self._lock:
            self._groups.pop(group, None)
            self._tell(f"- {group}\n")
        self._register.remove(group)

    def _tell(self, lines: str) -> None:
        """A shell that is gone is replaced, and one that does not read is ended for that."""
        assert self._shell.stdin is not None
        try:
            os.write(self._shell.stdin.fileno(), lines.encode())
        except BrokenPipeError:
            self._log.debug("the guardian (pid %d) is gone and not replaced yet", self.pid)
        except BlockingIOError:
            self._shell.kill()

    def _replace(self) -> None:
        """In a thread of its own: wait for the shell's end, and start another one."""
        while True:
            started = now()
            self._shell.wait()
            if self._over.wait(max(0.0, started + PAUSE - now())):
                return
            with self._lock:
                if self._over.is_set():
                    return
                gone = self._shell
                try:
                    self._shell = _start()
                except OSError as error:
                    self._log.error("the guardian can't be started: %s", error.strerror)
                    continue
                assert gone.stdin is not None
                gone.stdin.close()
                self._tell("".join(f"+ {group}\n" for group in self._groups))
            self._log.warning("the guardian (pid %d) was killed: now it is %d", gone.pid, self.pid)

    def dismiss(self) -> None:
        """Close the pipe and reap the shell; whatever it still watches is ended."""
        with self._lock:
            self._over.set()
            assert self._shell.stdin is not None
            self._shell.stdin.close()
        self._thread.join()


def _start() -> subprocess.Popen[bytes]:
    shell = subprocess.Popen(
        ["/bin/sh", "-c", SCRIPT, "swapd-guardian"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        bufsize=0,
    )
    assert shell.stdin is not None
    os.set_blocking(shell.stdin.fileno(), False)
    return shell
