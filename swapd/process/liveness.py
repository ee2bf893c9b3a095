"""Signs that a busy worker makes progress: what it tells, what flows, what can be seen of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import aiohttp
import psutil

from swapd.process.ports import family
from swapd.process.readiness import answers
from swapd.process.worker_process import WorkerProcess
from swapd.system.aio import now

STOPPED = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP})


@dataclass(frozen=True, slots=True)
class ProcessActivity:
    """A look at a worker's processes from outside."""

    stopped: bool
    """One of them was halted: by SIGSTOP, by a debugger."""
    read: int
    """What they have read from disks so far, in bytes or pages."""


def process_activity(pid: int) -> ProcessActivity:
    """Look once. Goes through all processes of the machine: not for the event loop."""
    stopped, read = False, 0
    for member in family(pid):
        try:
            stopped |= member.status() in STOPPED
            read += _read(member)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return ProcessActivity(stopped, read)


def _read(process: Any) -> int:
    """Where the system tells neither, a worker that reads for long is not known to."""
    if hasattr(process, "io_counters"):
        return int(process.io_counters().read_bytes)
    return int(getattr(process.memory_info(), "pageins", 0))


@dataclass(slots=True)
class Liveness:
    """When one worker was last known to make progress. Written by whoever sees a sign of it."""

    beat: float | None = None
    """When the worker last said so itself."""
    flowed: float = 0.0
    """When bytes of an answer last came, or another sign was seen."""
    leases: int = 0
    """Requests that it has."""
    held: int = 0
    """Those of them whose clients do not take what there is: they wait, not the worker."""
    read: int = -1
    """As last seen in `ProcessActivity`; negative: not looked yet."""

    def last(self) -> float:
        """When there was a sign last; now, if all wait for their clients."""
        if 0 < self.leases <= self.held:
            return now()
        return max(self.beat or 0.0, self.flowed)

    async def look(self, process: WorkerProcess) -> None:
        """Look for more signs at a worker that has been silent.

        One that reads from the disk makes progress: the pages of a large model come in so. Of a
        foreign one silence says nothing, unless it is halted or has to answer when it is asked.
        """
        loop, pid, spec = asyncio.get_running_loop(), process.pid, process.spec
        seen = await loop.run_in_executor(None, process_activity, pid)
        if 0 <= self.read < seen.read:
            self.flowed = now()
        self.read = seen.read
        if not spec.launch.builtin and not seen.stopped and not spec.serving.liveness_probe:
            self.flowed = now()

    async def ask(self, process: WorkerProcess, session: aiohttp.ClientSession) -> None:
        """Ask a foreign worker at its check endpoint; an answer within half its time is a sign."""
        if await answers(session, process, process.spec.serving.hang_timeout / 2):
            self.flowed = now()
