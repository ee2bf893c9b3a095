"""Orphan prevention: no worker outlives swapd.

Guardian: a small shell that kills the workers when swapd has ended. A built-in worker notices the
end of its standard input. An external worker does not, nor do child processes of either. So each
worker's process group is sent to a shell that reads from a pipe; when swapd ends in any way, the
pipe is closed and the shell kills the remaining groups. A shell that is killed is replaced.

PID registry: a file with the running workers. When swapd and its guardian are both killed, the
next start reads it, finds the orphans and kills them.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import subprocess
import threading
import uuid
from pathlib import Path

import msgspec
import psutil

from swapd.system.aio import now
from swapd.system.private_files import open_private
from swapd.system.process_identity import environment_variable, program_name, start_time
from swapd.system.state_files import decode_or_quarantine

RUN_ID = "SWAPD_RUN_ID"
"""Environment variable of all workers; its value identifies one run of swapd."""
RUN_ID_FORMAT = re.compile("[0-9a-f]{32}")
FIRST_PID = 2
"""Lowest pid of a worker: to kill(2), 1 is init, 0 and -1 are whole groups of processes."""
LAST_PID = 2**31 - 1
BLOCK = 4096
"""Bytes of a disk block: the file's length is a multiple of it."""
KILL_TIMEOUT = 5.0
"""Seconds in which a killed process is gone, unless the kernel holds it."""


class PidRecord(msgspec.Struct, frozen=True):
    """A worker process, the leader of its own session, at the time of its spawn."""

    pid: int
    started: str
    """Start time, which tells the process from a later one with the same pid."""
    program: str


class PidFile(msgspec.Struct, frozen=True):
    """Content of the file."""

    run_id: str
    workers: list[PidRecord]


class PidRegistry:
    """File with the running workers, rewritten at each change.

    A write failure is logged once and stops nothing else.
    """

    def __init__(self, file: Path, log: logging.Logger) -> None:
        self.run_id = uuid.uuid4().hex
        self._file = file
        self._log = log
        self._workers: dict[int, PidRecord] = {}
        self._failing = False
        self._descriptor = -1
        self._length = BLOCK
        self._write()  # Allocates the block while the disk has space.

    def add(self, pid: int) -> None:
        """Record a spawned worker."""
        self._workers[pid] = PidRecord(pid, start_time(pid), program_name(pid))
        self._write()

    def remove(self, pid: int) -> None:
        """Remove a worker that has ended with all its processes."""
        if self._workers.pop(pid, None) is not None:
            self._write()

    def _write(self) -> None:
        """Write the file in place, at a constant length.

        An allocated block needs no free space on the disk, and a rename can wait for the disk,
        twice for each worker. The write is not forced to the disk: a power cut ends workers too.
        """
        try:
            file = self._open()
            page = msgspec.json.encode(PidFile(self.run_id, [*self._workers.values()])) + b"\n"
            self._length = max(self._length, -(-len(page) // BLOCK) * BLOCK)
            if os.pwrite(file, page.ljust(self._length), 0) < self._length:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self._failing:
                self._log.warning(
                    "%s can't be written (%s): if swapd and its guardian are both killed now,"
                    " the next start may miss orphaned workers",
                    self._file,
                    error.strerror,
                )
            self._failing = True
        else:
            self._failing = False

    def _open(self) -> int:
        """Return the open file's descriptor; open a new file if the old one was removed.

        It is closed with this process.
        """
        if self._descriptor >= 0:
            if os.fstat(self._descriptor).st_nlink:
                return self._descriptor
            os.close(self._descriptor)
            self._descriptor = -1
        self._descriptor = open_private(self._file, os.O_WRONLY | os.O_CREAT)
        # The content of an earlier run must not show behind the new content.
        self._length = max(BLOCK, os.fstat(self._descriptor).st_size)
        return self._descriptor


def kill_orphans(file: Path, log: logging.Logger) -> None:
    """Kill the orphans of an earlier run, as recorded in its registry, and log each.

    The file is not trusted: a process is signalled only with a proof that it is an orphan, see
    `_members`. The new run's own registry overwrites the file.
    """
    try:
        content = decode_or_quarantine(file, PidFile, log)
    except OSError as error:
        log.warning("%s can't be read: %s; orphaned workers stay", file, error.strerror)
        return
    if content is None:
        return
    if not RUN_ID_FORMAT.fullmatch(content.run_id):
        log.warning("%s names no run of swapd: no process is taken for an orphan", file)
        return
    excluded = _this_process_and_its_parents()
    orphans: dict[int, psutil.Process] = {}
    for record in content.workers:
        members = [p for p in _members(record, content.run_id) if p.pid not in excluded]
        if members:
            log.warning(
                "orphan of an earlier swapd: %s (pid %d): killed", record.program, record.pid
            )
        orphans.update((process.pid, process) for process in members)
    for process in orphans.values():
        try:
            process.kill()  # Only if the pid has not been reused since.
        except (psutil.Error, OSError) as error:
            log.warning("the orphan %d can't be killed: %s", process.pid, error)
    _, stuck = psutil.wait_procs(list(orphans.values()), timeout=KILL_TIMEOUT)
    for process in stuck:
        log.warning("the orphan %d did not end: the kernel holds it", process.pid)


def _members(record: PidRecord, run_id: str) -> list[psutil.Process]:
    """Return the remaining processes of a worker: itself, its session and its group.

    A process counts if the run id is in its own environment; or if it is in the session of the
    recorded worker, which still runs, with the recorded start time and program and the run id in
    its environment. An empty start time or program proves nothing.
    """
    if not FIRST_PID <= record.pid <= LAST_PID:
        return []
    leader = (
        record.started != ""
        and record.program != ""
        and start_time(record.pid) == record.started
        and program_name(record.pid) == record.program
        and environment_variable(record.pid, RUN_ID) == run_id
    )
    return [
        process
        for process in psutil.process_iter()
        if process.pid >= FIRST_PID
        and _belongs(process.pid, record.pid)
        and (leader or environment_variable(process.pid, RUN_ID) == run_id)
    ]


def _belongs(pid: int, leader: int) -> bool:
    try:
        return leader in (os.getsid(pid), os.getpgid(pid)) and start_time(pid) != ""
    except OSError:
        return False


def _this_process_and_its_parents() -> set[int]:
    this = psutil.Process()
    return {this.pid, *(parent.pid for parent in this.parents())}


SCRIPT = """
trap '' INT TERM HUP
groups=
while read -r op group; do
  case $op in
    +) groups="$groups $group" ;;
    -) rest=
       for g in $groups; do [ "$g" = "$group" ] || rest="$rest $g"; done
       groups=$rest ;;
  esac
done
for g in $groups; do kill -s KILL -- "-$g" 2>/dev/null; done
"""
RESTART_INTERVAL = 1.0
"""Seconds from the start of one shell to the start of the next, at least."""


class Guardian:
    """Shell that kills the watched process groups when this process has ended."""

    def __init__(self, log: logging.Logger, registry: PidRegistry) -> None:
        self._log = log
        self._registry = registry
        self._groups: dict[int, None] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._shell = _start()
        self._thread = threading.Thread(target=self._replace, name="guardian", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Process id of the current shell."""
        return self._shell.pid

    @property
    def run_id(self) -> str:
        """Value of `SWAPD_RUN_ID` in the environment of this run's workers."""
        return self._registry.run_id

    def watch(self, group: int) -> None:
        """Kill `group` when this process ends."""
        with self._lock:
            self._groups[group] = None
            self._send(f"+ {group}\n")
        self._registry.add(group)

    def forget(self, group: int) -> None:
        """Stop watching a group that has ended: the kernel may reuse its number."""
        with self._lock:
            self._groups.pop(group, None)
            self._send(f"- {group}\n")
        self._registry.remove(group)

    def _send(self, lines: str) -> None:
        """Write to the shell; a shell that does not read is killed, and then replaced."""
        assert self._shell.stdin is not None
        try:
            os.write(self._shell.stdin.fileno(), lines.encode())
        except BrokenPipeError:
            self._log.debug("the guardian (pid %d) has ended and is not replaced yet", self.pid)
        except BlockingIOError:
            self._shell.kill()

    def _replace(self) -> None:
        """Replace each shell that ends. Runs in a thread."""
        while True:
            started = now()
            self._shell.wait()
            if self._closed.wait(max(0.0, started + RESTART_INTERVAL - now())):
                return
            with self._lock:
                if self._closed.is_set():
                    return
                ended = self._shell
                try:
                    self._shell = _start()
                except OSError as error:
                    self._log.error("the guardian can't be started: %s", error.strerror)
                    continue
                assert ended.stdin is not None
                ended.stdin.close()
                self._send("".join(f"+ {group}\n" for group in self._groups))
            self._log.warning(
                "the guardian (pid %d) ended; its replacement is %d", ended.pid, self.pid
            )

    def close(self) -> None:
        """Close the pipe and reap the shell, which kills the groups that it still watches."""
        with self._lock:
            self._closed.set()
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
