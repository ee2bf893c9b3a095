"""Commands: outputs of the scheduler. The scheduler counts a command as done once it is emitted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from swapd.domain.events import RequestId, WorkerId
from swapd.domain.models import ModelProfile, ModelSpec


class RejectReason(Enum):
    """Reason for which a request is rejected."""

    UNKNOWN_MODEL = "unknown_model"
    QUEUE_FULL = "queue_full"
    TENANT_FULL = "tenant_queue_full"
    OVERLOADED = "overloaded"
    START_FAILED = "start_failed"
    TOO_LARGE = "too_large"
    INSUFFICIENT_MEMORY = "insufficient_memory"
    CLOSING = "closing"
    WORKER_FAILED = "worker_failed"
    POISON = "poison"


HTTP_STATUS = {
    RejectReason.UNKNOWN_MODEL: (404, "invalid_request_error", "model_not_found"),
    RejectReason.QUEUE_FULL: (429, "rate_limit_error", "queue_full"),
    RejectReason.TENANT_FULL: (429, "rate_limit_error", "tenant_queue_full"),
    RejectReason.OVERLOADED: (503, "overloaded_error", "overloaded"),
    RejectReason.START_FAILED: (503, "unavailable_error", "model_start_failed"),
    RejectReason.TOO_LARGE: (503, "unavailable_error", "model_too_large"),
    RejectReason.INSUFFICIENT_MEMORY: (503, "unavailable_error", "insufficient_memory"),
    RejectReason.CLOSING: (503, "unavailable_error", "shutting_down"),
    RejectReason.WORKER_FAILED: (502, "upstream_error", "worker_failed"),
    RejectReason.POISON: (500, "poison_error", "poison_request"),
}
"""HTTP status, OpenAI's `type` and `code` by reason of a rejection."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker for a model."""

    worker: WorkerId
    spec: ModelSpec


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop a worker: it finishes the requests that it serves and exits."""

    worker: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill a worker at once."""

    worker: WorkerId
    reason: str
    hung: bool = False
    """True if the reason is that the worker made no progress."""


@dataclass(frozen=True, slots=True)
class AssignWorker:
    """Assign a request to a worker."""

    request: RequestId
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Reject:
    """Reject a request. `retry_after` is in seconds; 0: a later attempt would fail as well."""

    request: RequestId
    reason: RejectReason
    message: str
    retry_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Preload:
    """Load a model as if a client had requested it: its group is loaded as a whole."""

    model: str


@dataclass(frozen=True, slots=True)
class PrefetchFiles:
    """Read the files of a model into the page cache, because the model is loaded next."""

    spec: ModelSpec


@dataclass(frozen=True, slots=True)
class SampleMemory:
    """Sample the memory in use; the result is a `MemorySampled` event."""


@dataclass(frozen=True, slots=True)
class CheckLiveness:
    """Find the last progress of a busy worker; the result is a `LivenessReported` event."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class QueryFreeMemory:
    """Report the free memory before a worker is started.

    The result, a `FreeMemoryReported` event, follows without delay.
    """


@dataclass(frozen=True, slots=True)
class SaveProfile:
    """Save the measurements of a worker for later runs of swapd."""

    worker: WorkerId
    profile: ModelProfile


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Set the timer that yields a `TimerFired` event, replacing an earlier time; None: no timer."""

    when: float | None


Command: TypeAlias = (
    Start
    | Stop
    | Kill
    | AssignWorker
    | Reject
    | Preload
    | PrefetchFiles
    | SampleMemory
    | CheckLiveness
    | QueryFreeMemory
    | SaveProfile
    | SetTimer
)
