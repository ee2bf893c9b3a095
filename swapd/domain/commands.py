"""What is to be done. An order counts from the moment it is given."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from swapd.domain.events import RequestId, WorkerId
from swapd.domain.models import ModelProfile, ModelSpec


class RejectReason(Enum):
    """Why a request is refused."""

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
"""For each refusal: HTTP status, OpenAI's `type` and `code`."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker for this model."""

    worker: WorkerId
    spec: ModelSpec


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask a worker to end: it finishes what it serves and exits."""

    worker: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End a worker at once."""

    worker: WorkerId
    reason: str
    hung: bool = False
    """It is to go because it made no progress."""


@dataclass(frozen=True, slots=True)
class AssignWorker:
    """Pass this request to this worker."""

    request: RequestId
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer this request with a refusal; `retry_after` in seconds, 0: no use to try again."""

    request: RequestId
    reason: RejectReason
    message: str
    retry_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Preload:
    """Ask for this model too, as a client would: it belongs together with one that is started."""

    model: str


@dataclass(frozen=True, slots=True)
class PrefetchFiles:
    """Have the files of this model read into the system's cache: it is loaded next."""

    spec: ModelSpec


@dataclass(frozen=True, slots=True)
class SampleMemory:
    """Look at the memory and report it as Sampled."""


@dataclass(frozen=True, slots=True)
class CheckLiveness:
    """Find out when this worker, which has requests, last made progress: report it as Looked."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class QueryFreeMemory:
    """Say at once, as FreeSeen, how much memory is free: a worker is to be started."""


@dataclass(frozen=True, slots=True)
class SaveProfile:
    """Keep what this worker taught of its model, for another run of swapd."""

    worker: WorkerId
    learned: ModelProfile


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Send Ticked at this time. Replaces the wish before; None: no wish."""

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
