"""What passes between the doors and the supervisor: wishes, leases, refusals, workers as seen."""

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
"""Seconds in which a worker whose connections broke is found to have ended, if it has."""


class RejectedError(Exception):
    """A request was refused; `refusal` says why and when to come again."""

    def __init__(self, refusal: od.Reject) -> None:
        super().__init__(refusal.message)
        self.rejection = refusal


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """How a request wants to be treated."""

    tenant: str = ""
    keep_alive: float | None = None
    """See `Arrived.keep_alive`."""
    priority: int = 0
    """See `Arrived.priority`."""


DEFAULT_OPTIONS = RequestOptions()


@dataclass(slots=True)
class WorkerHandle:
    """A worker as the supervisor holds it."""

    process: WorkerProcess | None
    started: float
    """Seconds since 1970."""
    identity: str
    """Under which what is learned of it is kept."""
    liveness: Liveness = field(default_factory=Liveness)
    resumable: bool = False
    """Whether it can go on with a stream that another one began."""
    devices: tuple[DeviceReport, ...] = ()
    """What it told of devices beside the CPU."""
    probe: asyncio.Task[None] | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    exit_reason: str = ""
    """How it ended, once it has."""
    since: float = field(default_factory=now)
    """When it was started, by the clock that nobody sets."""


@dataclass(slots=True)
class Lease:
    """A worker's slot, granted to one request. To be given back by `Supervisor.release`."""

    request: ev.RequestId
    worker: ev.WorkerId
    base_url: str
    handle: WorkerHandle

    async def exit_reason(self, within: float = EXIT_GRACE) -> str:
        """How the worker has ended, if it has or does so `within` some seconds; else empty.

        Its connections break before its end is known, by the time a thread takes to wake.
        """
        try:
            await asyncio.wait_for(self.handle.gone.wait(), within)
        except asyncio.TimeoutError:
            return ""
        return self.handle.exit_reason


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """One worker as people may see it: the core's view and the process's."""

    status: WorkerStatus
    pid: int
    argv: tuple[str, ...]
    base_url: str
    started: float
    """Seconds since 1970."""
    since_progress: float | None
    """Seconds since the worker was last heard to make progress; None: never."""
    devices: tuple[DeviceReport, ...] = ()
    """What it told of devices beside the CPU."""
