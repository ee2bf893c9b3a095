"""Facts that came in. Each says when, in seconds of one monotonic clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from swapd.domain.models import Catalog, ModelProfile

RequestId: TypeAlias = int
WorkerId: TypeAlias = int


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A client asks for a model, by its catalog name."""

    now: float
    request: RequestId
    model: str
    needs_slot: bool = True
    """False for what a worker answers beside its slots: its health, its slots' state."""
    keep_alive: float | None = None
    """Seconds of idleness after which the worker goes from then on, 0 at once, negative never;
    None: no wish."""
    tenant: str = ""
    """Who asks, for sharing fairly."""
    priority: int = 0
    """Higher goes first, within bounds of time."""
    fingerprint: str = ""
    """By what it is known when it comes again; told only while `Scheduler.is_wary`."""


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """The client of a request that still waits has gone."""

    now: float
    request: RequestId


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """A granted request is over."""

    now: float
    request: RequestId
    answered: bool = True
    """Whether the worker answered it; False when the worker failed or the client went."""
    tokens: int = 0
    """Read and written for it; 0: not known."""
    fingerprint: str = ""
    """Told when its worker ended under it."""


@dataclass(frozen=True, slots=True)
class RequestRetried:
    """The worker of a granted request has ended under it; another one is to serve it."""

    now: float
    request: RequestId
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker is ready to serve."""

    now: float
    worker: WorkerId
    slots: int = 0
    """How many requests it says that it serves at once; 0: it does not say."""


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """A worker's process is gone; `reason` is a sentence for whom it concerns."""

    now: float
    worker: WorkerId
    reason: str = ""
    killed_externally: bool = False
    """Somebody killed it: nothing that it did, or was asked to do, is the cause."""


@dataclass(frozen=True, slots=True)
class LivenessReported:
    """The answer to `Look`: when the worker was last known to make progress."""

    now: float
    worker: WorkerId
    last_progress: float


@dataclass(frozen=True, slots=True)
class MemorySampled:
    """A look at the memory: percent of the machine in use, bytes that each worker holds."""

    now: float
    used_percent: float
    held: Mapping[WorkerId, int]
    pressure_percent: float = 0.0
    """Percent of the last seconds in which something waited for memory, as the system has it."""


@dataclass(frozen=True, slots=True)
class FreeMemoryReported:
    """Bytes of memory that a new worker may take."""

    now: float
    free: int


@dataclass(frozen=True, slots=True)
class CatalogReloaded:
    """The configuration is now this one."""

    now: float
    catalog: Catalog
    learned: Mapping[str, ModelProfile] | None = None
    """What is known of its models, as their commands and files are now; None: nothing new."""


@dataclass(frozen=True, slots=True)
class UnloadRequested:
    """Somebody wants a model's worker gone, or, with None, all of them."""

    now: float
    model: str | None = None


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """swapd is to end: at `deadline` at the latest."""

    now: float
    deadline: float


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time that a WakeAt named has come."""

    now: float


Event: TypeAlias = (
    RequestArrived
    | RequestCancelled
    | RequestFinished
    | RequestRetried
    | WorkerReady
    | WorkerExited
    | LivenessReported
    | MemorySampled
    | FreeMemoryReported
    | CatalogReloaded
    | UnloadRequested
    | ShutdownRequested
    | TimerFired
)
