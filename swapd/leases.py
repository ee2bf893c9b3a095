"""Types shared by the supervisor and its callers: options, leases, rejections, snapshots."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from swapd.domain import commands as od
from swapd.domain import events as ev
from swapd.domain.status import WorkerStatus
from swapd.process.liveness import Liveness
from swapd.process.worker_process import WorkerProcess
from swapd.system.aio import now
from workers.protocol import DeviceReport

EXIT_GRACE = 1.0
"""Seconds within which the exit of a worker is detected after its connections broke."""


class RejectedError(Exception):
    """A request was rejected; `rejection` has the reason and the time to wait before a retry."""

    def __init__(self, rejection: od.Reject) -> None:
        super().__init__(rejection.message)
        self.rejection = rejection


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Scheduling options of one request."""

    tenant: str = ""
    keep_alive: float | None = None
    """See `RequestArrived.keep_alive`."""
    priority: int = 0
    """See `RequestArrived.priority`."""


DEFAULT_OPTIONS = RequestOptions()


@dataclass(slots=True)
class WorkerHandle:
    """The supervisor's state of one worker."""

    process: WorkerProcess | None
    started: float
    """Time of the start, in seconds since 1970."""
    identity: str
    """Key of the worker's profile in the profile store."""
    liveness: Liveness = field(default_factory=Liveness)
    resumable: bool = False
    """True if the worker can resume a stream that another worker began."""
    devices: tuple[DeviceReport, ...] = ()
    """Devices besides the CPU, as the worker reported them."""
    probe: asyncio.Task[None] | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process has exited."""
    exit_reason: str = ""
    """Reason of the exit; empty while the process runs."""
    since: float = field(default_factory=now)
    """Time of the start, in seconds of the monotonic clock."""

    def lease(self, request: ev.RequestId, worker: ev.WorkerId) -> Lease:
        """Lease the worker to a request. The worker must be ready."""
        assert self.process is not None, "only a ready worker is assigned to requests"
        self.liveness.leases += 1
        return Lease(request, worker, self.process.base_url, self)


@dataclass(slots=True)
class Lease:
    """A worker assigned to one request, until `Supervisor.release` or `Supervisor.reacquire`."""

    request: ev.RequestId
    worker: ev.WorkerId
    base_url: str
    handle: WorkerHandle

    def end(self) -> None:
        """Stop counting the request as one of the worker's."""
        self.handle.liveness.leases -= 1

    async def exit_reason(self, within: float = EXIT_GRACE) -> str:
        """Return the reason of the worker's exit, or "" if it still runs after `within` seconds.

        Broken connections are seen before the exit itself, by the time that a thread takes to wake.
        """
        try:
            await asyncio.wait_for(self.handle.gone.wait(), within)
        except asyncio.TimeoutError:
            return ""
        return self.handle.exit_reason


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """Snapshot of one worker: the scheduler's status and properties of the process."""

    status: WorkerStatus
    pid: int
    argv: tuple[str, ...]
    base_url: str
    started: float
    """Time of the start, in seconds since 1970."""
    since_progress: float | None
    """Seconds since the worker last reported progress; None: it has not yet."""
    devices: tuple[DeviceReport, ...] = ()
    """Devices besides the CPU, as the worker reported them."""
