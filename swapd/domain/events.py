"""Events: inputs of the scheduler. `now` is in seconds of one monotonic clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from swapd.domain.models import Catalog, ModelProfile

RequestId: TypeAlias = int
WorkerId: TypeAlias = int


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A request for a model arrived; `model` is the model's name in the catalog."""

    now: float
    request: RequestId
    model: str
    needs_slot: bool = True
    """False for requests that a worker answers without a slot, such as `/health` and `/slots`."""
    keep_alive: float | None = None
    """Seconds of idleness after which the worker is stopped from then on; 0: at once, negative:
    never, None: as configured."""
    tenant: str = ""
    """Tenant that the request is accounted to, for fair sharing."""
    priority: int = 0
    """Priority; higher values are served first, within limits of waiting time."""
    fingerprint: str = ""
    """Hash that identifies repetitions of the request; given only while
    `Scheduler.tracks_fingerprints` is True."""


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """The client of a request that still waits has gone."""

    now: float
    request: RequestId


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """A request that had been assigned to a worker ended."""

    now: float
    request: RequestId
    answered: bool = True
    """True if the worker answered it; False if the worker failed or the client disconnected."""
    tokens: int = 0
    """Prompt and generated tokens; 0: unknown."""
    fingerprint: str = ""
    """Given if the worker exited while serving the request."""


@dataclass(frozen=True, slots=True)
class RequestRetried:
    """The worker of an assigned request exited; the request is queued for another worker."""

    now: float
    request: RequestId
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker is ready to serve."""

    now: float
    worker: WorkerId
    slots: int = 0
    """Requests that the worker reports to serve at once; 0: not reported."""


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """A worker's process exited; `reason` is a sentence for clients and the log."""

    now: float
    worker: WorkerId
    reason: str = ""
    killed_externally: bool = False
    """True if the process was killed from outside, so that no request is the cause."""


@dataclass(frozen=True, slots=True)
class LivenessReported:
    """The result of `CheckLiveness`: time of the worker's last known progress."""

    now: float
    worker: WorkerId
    last_progress: float


@dataclass(frozen=True, slots=True)
class MemorySampled:
    """A memory sample: percent of the machine's memory in use, and bytes held by each worker."""

    now: float
    used_percent: float
    held: Mapping[WorkerId, int]
    pressure_percent: float = 0.0
    """Percent of the last seconds in which some task stalled on memory (PSI)."""


@dataclass(frozen=True, slots=True)
class FreeMemoryReported:
    """The result of `QueryFreeMemory`: bytes of memory that a new worker may take."""

    now: float
    free: int


@dataclass(frozen=True, slots=True)
class CatalogReloaded:
    """The catalog was replaced."""

    now: float
    catalog: Catalog
    profiles: Mapping[str, ModelProfile] | None = None
    """Profiles by model, for the present commands and files; None: unchanged."""


@dataclass(frozen=True, slots=True)
class UnloadRequested:
    """The workers of a model, or of all models if None, are to be unloaded."""

    now: float
    model: str | None = None


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """swapd shuts down; running requests may go on until `deadline`."""

    now: float
    deadline: float


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time of the last `SetTimer` was reached."""

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
