"""Values that the scheduler keeps for each worker, model and request, and amounts of capacity."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from swapd.domain.commands import RejectReason
from swapd.domain.events import RequestId, WorkerId
from swapd.domain.models import Limits, ModelSpec
from swapd.scheduler.forecast import RateEstimator
from swapd.scheduler.lifecycle import Transition, WorkerState, advance
from swapd.scheduler.queue import NEVER, QueuedRequest, Rank


@dataclass(frozen=True, slots=True)
class Rejection:
    """The reason for which a request is not served, and the message for its client."""

    reason: RejectReason
    message: str
    retry_after: float = 0.0
    """Seconds after which a retry may succeed; 0: never."""


@dataclass(slots=True)
class WorkerRecord:
    """A worker whose process is alive or being started."""

    worker: WorkerId
    spec: ModelSpec
    since: float
    """Time of the start command."""
    deadline: float | None
    """Time at which it is killed unless it is ready, or has exited, by then."""
    state: WorkerState = WorkerState.STARTING
    reported_slots: int = 0
    """Slots by its ready message; 0: not reported."""
    replacement: bool = False
    """True while it starts beside a ready worker of its model, which it will replace."""
    isolated: bool = False
    """True if the request that it serves must be served alone."""
    busy: set[RequestId] = field(default_factory=set)
    """Requests that take a slot."""
    served: int = 0
    """Requests answered."""
    ready_since: float = -math.inf
    """Time at which it became ready; minus infinity before."""
    last_used: float = 0.0
    keep_alive: float | None = None
    """Seconds by the last request that set them, in place of the model's TTL."""
    last_progress: float = 0.0
    """Time of the last known progress, or of the first request after idleness."""
    check_at: float = math.inf
    """Time of the next liveness check."""
    reason: str = ""
    """Reason for which it was drained or stopped."""
    start_failure: str = ""
    """Message that it was killed because it was not ready in time; empty: it was not."""
    hang: str = ""
    """Message that it was killed because it made no progress; empty: it was not."""

    def step(self, step: Transition) -> None:
        """Change the state; raises IllegalTransitionError."""
        self.state = advance(self.state, step)

    @property
    def idle(self) -> bool:
        """True if it is ready and serves no request that takes a slot."""
        return self.state is WorkerState.READY and not self.busy

    @property
    def is_loading(self) -> bool:
        """True until it is ready. The share of its memory that it holds is unknown till then."""
        return self.ready_since == -math.inf

    @property
    def slots(self) -> int:
        """Requests served at once: as reported by the worker, else as configured."""
        return self.reported_slots or self.spec.serving.slots

    @property
    def free_slots(self) -> int:
        """Slots for further requests."""
        if self.state is not WorkerState.READY or (self.isolated and self.busy):
            return 0
        return self.slots - len(self.busy)

    def idle_limit(self, uses_ttl: bool) -> float:
        """Return the seconds of idleness after which it is stopped; infinite: never.

        The `keep_alive` of a request counts under every policy, the TTL of the model under those
        that use it.
        """
        if self.spec.serving.pinned:
            return math.inf
        if self.keep_alive is not None:
            return self.keep_alive if self.keep_alive >= 0 else math.inf
        return self.spec.serving.ttl if self.spec.serving.ttl and uses_ttl else math.inf


@dataclass(slots=True)
class ModelRecord:
    """Measurements of a model. The newest value has a weight of a fifth in each mean."""

    demand: RateEstimator = field(default_factory=RateEstimator)
    uses: int = 0
    """Requests assigned so far."""
    measured: int = 0
    """Largest memory of one of its workers so far, in bytes."""
    failures: int = 0
    """Failed starts in a row."""
    backoff_until: float = 0.0
    preempted_at: float = -math.inf
    """Time of the last eviction for a younger request, at the end of a time slice."""
    reason: str = ""
    """Reason of the last failed start."""
    mean_request: float | None = None
    """Seconds from assignment to end."""
    mean_tokens: float | None = None
    """Tokens of a request, over the requests with a known number."""
    mean_load: float | None = None
    """Seconds from start to readiness."""
    mean_pause: float | None = None
    """Seconds from the end of all its requests to the arrival of the next one."""
    quiet_since: float | None = None
    """Time at which its last request ended; None while it has requests, or never had any."""


@dataclass(slots=True)
class Assignment:
    """A request that a worker serves."""

    worker: WorkerId
    model: str
    since: float
    tenant: str
    priority: int
    tokens: float
    """Tokens counted for its tenant so far."""
    request: QueuedRequest
    """The request as it was queued; it is queued so again if its worker exits."""


def mean(before: float | None, value: float) -> float:
    """Return a moving mean after one more value."""
    return value if before is None else before + 0.2 * (value - before)


class Capacity(NamedTuple):
    """An amount of the two limited resources: places for workers, and bytes.

    A tuple, because a plan makes many of them; but `+` adds the amounts.
    """

    workers: int = 0
    bytes: int = 0

    def __add__(self, other: Capacity) -> Capacity:  # type: ignore[override]
        return Capacity(self[0] + other[0], self[1] + other[1])

    def __sub__(self, other: Capacity) -> Capacity:
        return Capacity(self[0] - other[0], self[1] - other[1])

    def __bool__(self) -> bool:
        """Return True if any of both is left."""
        return self[0] > 0 or self[1] > 0


NO_CAPACITY = Capacity()


def missing(taken: Capacity, limits: Limits) -> Capacity:
    """Return the excess of `taken` over the limits, never negative; falsy when all of it fits."""
    workers = taken[0] - limits.max_resident if limits.max_resident else 0
    size = taken[1] - limits.budget_bytes if limits.budget_bytes else 0
    if workers <= 0 and size <= 0:
        return NO_CAPACITY
    return Capacity(max(0, workers), max(0, size))


@dataclass(slots=True)
class PlacementPlan:
    """The steps that give the wanted models their capacity."""

    version: int
    """Version of the state that it was made from."""
    start: list[ModelSpec] = field(default_factory=list)
    """Models that fit now."""
    victims: dict[WorkerId, str] = field(default_factory=dict)
    """Workers to evict, each with the model that needs its capacity. Busy ones are preempted:
    they get no new requests for as long as their capacity is needed."""
    rejected: list[tuple[ModelSpec, Capacity]] = field(default_factory=list)
    """Models without capacity under a policy that evicts no worker, and the missing amount."""
    horizon: Rank = NEVER
    """Rank at which the plan ended; models behind it have no influence on it."""
    replan_at: float = math.inf
    """End of the first time slice that a wanted model waits for."""
    valid_until: float = math.inf
    """Time from which a plan from the same state may differ."""


@dataclass(slots=True)
class MemoryWaiters:
    """Models that wait for memory which other programs hold, and the time of the next query."""

    since: dict[str, float] = field(default_factory=dict)
    """Time at which each model was first short of memory."""
    query_at: float = math.inf
    """Time of the next query when no other event comes first."""
    queried_version: int = -1
    """Version of the state at the last query."""
    free: int | None = None
    """Free bytes; known only while the event that reports them is handled."""

    def should_query(self, version: int, now: float) -> bool:
        """Return True if a query may have another result than the last one."""
        return version != self.queried_version or now >= self.query_at

    def queried(self, version: int) -> None:
        """Record that a query was sent."""
        self.queried_version, self.query_at = version, math.inf

    def add(self, model: str, now: float) -> float:
        """Record that a model is short of memory; return the time since which it is."""
        return self.since.setdefault(model, now)

    def remove(self, model: str) -> None:
        """End the wait of a model."""
        self.since.pop(model, None)

    def retain(self, models: set[str]) -> None:
        """End the wait of all models but these."""
        self.since = {model: since for model, since in self.since.items() if model in models}
        if not self.since:
            self.query_at = math.inf
