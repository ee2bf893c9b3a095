"""The guardian: a small shell that outlives swapd by a moment and ends its workers.

A worker of ours notices the end of its standard input. A foreign one does not, nor do the
children that either may have. So every worker's process group is told to a shell that reads
from a pipe; when swapd is gone, however it went, the pipe ends and the shell kills the groups
that are left. When the shell is killed, another takes its place; for the case that both are, the
register remembers.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading

from swapd.system.aio import now
from swapd.effects.register import Register

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

    def __init__(self, log: logging.Logger, register: Register) -> None:
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
