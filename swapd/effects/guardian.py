"""The guardian: a small shell that outlives swapd by a moment and ends its workers.

A worker of ours notices the end of its standard input. A foreign one does not, nor do the
children that either may have. So every worker's process group is told to a shell that reads
from a pipe; when swapd is gone, however it went, the pipe ends and the shell kills the groups
that are left.
"""

from __future__ import annotations

import logging
import subprocess

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


class Guardian:
    """Holds the list of process groups to end when this process is gone."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT, "swapd-guardian"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._shell.pid

    def watch(self, group: int) -> None:
        """From now on, `group` ends with this process."""
        self._tell(f"+ {group}\n")

    def forget(self, group: int) -> None:
        """The group has ended; its number may come to mean somebody else."""
        self._tell(f"- {group}\n")

    def _tell(self, line: str) -> None:
        assert self._shell.stdin is not None
        try:
            self._shell.stdin.write(line.encode())
            self._shell.stdin.flush()
        except BrokenPipeError:
            self._log.warning(
                "the guardian (pid %d) is gone: workers may outlive a crash of swapd", self.pid
            )

    def dismiss(self) -> None:
        """Close the pipe and reap the shell; whatever it still watches is ended."""
        assert self._shell.stdin is not None
        try:
            self._shell.stdin.close()
        except BrokenPipeError:
            self._log.debug("the guardian was gone already")
        self._shell.wait()
