"""Liveness of busy workers: heartbeats, response bytes, disk reads, and a probe."""

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
    """Activity of a worker's processes, as the operating system reports it."""

    stopped: bool
    """True if one of them is stopped, by SIGSTOP or by a debugger."""
    read: int
    """Total of their disk reads so far, in bytes or pages."""


def process_activity(pid: int) -> ProcessActivity:
    """Return the present activity. It scans all processes, so do not call it on the event loop."""
    stopped, read = False, 0
    for member in family(pid):
        try:
            stopped |= member.status() in STOPPED
            read += _read(member)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return ProcessActivity(stopped, read)


def _read(process: Any) -> int:
    """Return the bytes or pages read; 0 on systems that report neither."""
    if hasattr(process, "io_counters"):
        return int(process.io_counters().read_bytes)
    return int(getattr(process.memory_info(), "pageins", 0))


@dataclass(slots=True)
class Liveness:
    """Times of the last signs that one worker makes progress, written by all code that sees one."""

    last_heartbeat: float | None = None
    """Time of the last heartbeat; None before the first."""
    last_activity: float = 0.0
    """Time of the last response bytes, or of another sign."""
    leases: int = 0
    """Number of its requests."""
    held: int = 0
    """Number of requests that wait for their client to read, and not for the worker."""
    read: int = -1
    """Last value of `ProcessActivity.read`; negative before the first look."""

    def last(self) -> float:
        """Return the time of the last sign; now, if all requests wait for their clients."""
        if 0 < self.leases <= self.held:
            return now()
        return max(self.last_heartbeat or 0.0, self.last_activity)

    async def look(self, process: WorkerProcess) -> None:
        """Look for other signs of a worker that has been silent.

        A worker that reads from the disk makes progress: it loads the pages of a large model. The
        silence of an external worker means nothing, unless it is stopped, or its model has a
        liveness probe.
        """
        loop, pid, spec = asyncio.get_running_loop(), process.pid, process.spec
        activity = await loop.run_in_executor(None, process_activity, pid)
        if 0 <= self.read < activity.read:
            self.last_activity = now()
        self.read = activity.read
        if not spec.launch.builtin and not activity.stopped and not spec.serving.liveness_probe:
            self.last_activity = now()

    async def probe(self, process: WorkerProcess, session: aiohttp.ClientSession) -> None:
        """Probe an external worker's `checkEndpoint`; a response is a sign of liveness.

        It has to arrive in half of `hang_timeout`.
        """
        if await answers(session, process, process.spec.serving.hang_timeout / 2):
            self.last_activity = now()
