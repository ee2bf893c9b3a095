"""Scheduler state: queues, workers and measurements, and indices over them.

The indices make the cost of an event depend on the change and not on the number of models:
workers by model, models that wait for a worker by rank, sums of capacity. Each is updated in the
method that changes its source. Two marks let the settle pass skip work: `touched`, the models for
which anything changed, and `version`, which grows with each change that a placement plan depends
on.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator, Mapping

from swapd.domain.events import RequestId, WorkerId
from swapd.domain.models import Catalog, Limits, ModelProfile, ModelSpec
from swapd.scheduler.eviction import POLICIES, EvictionPolicy, PressureLevel
from swapd.scheduler.forecast import Forecast
from swapd.scheduler.lifecycle import LEAVING, SERVING, Transition
from swapd.scheduler.quarantine import Quarantine
from swapd.scheduler.queue import NEVER, QueuedRequest, Rank, RequestQueue, insert
from swapd.scheduler.records import (
    Assignment,
    Capacity,
    MemoryWaiters,
    ModelRecord,
    PlacementPlan,
    WorkerRecord,
)
from swapd.scheduler.timers import Timers

DEFAULT_TOKENS = 256.0
"""Tokens of a request, until a number is known of any request for its model."""


class SchedulerState:
    """The one mutable state of the scheduler, and queries on it."""

    def __init__(self, catalog: Catalog, profiles: Mapping[str, ModelProfile]) -> None:
        self.catalog = catalog
        self.workers: dict[WorkerId, WorkerRecord] = {}
        """Workers alive, oldest first."""
        self.queues: dict[str, RequestQueue] = {}
        """Queue of each model with queued requests."""
        self.queued: dict[RequestId, tuple[str, QueuedRequest]] = {}
        """Queued requests, each with its model."""
        self.by_tenant: dict[str, dict[RequestId, QueuedRequest]] = {}
        """Queued requests of each tenant."""
        self.assigned: dict[RequestId, Assignment] = {}
        self.records: dict[str, ModelRecord] = {}
        self.forecast = Forecast()
        self.quarantine = Quarantine()
        self.timers = Timers()
        """Next time at which the settle pass must look at each worker."""

        # Placement
        self.wanted: list[tuple[Rank, str]] = []
        """Models with a queue and no worker that serves it, by the first rank in their queue."""
        self.plan = PlacementPlan(version=-1)
        self.horizon = NEVER
        """Rank up to which the plan depends on the models that wait for capacity."""
        self.memory_waiters = MemoryWaiters()
        self.outdated: dict[WorkerId, None] = {}
        """Workers that run with a launch spec which a reload has changed."""
        self.prefetched = ""
        """Model whose files were last prefetched, while it waits."""

        # Marks for the settle pass
        self.touched: set[str] = set()
        self.version = 0
        self.all_touched = False
        """True if the next pass must look at all models."""
        self.pressure = PressureLevel.NONE
        """Memory pressure by the event that is being handled."""

        # Times
        self.sample_at = math.inf
        self.timer: float | None = None
        """Time of the last SetTimer command."""
        self.closing: float | None = None
        """Deadline of the shutdown; None: not shutting down."""

        # Indices
        self._ranks: dict[str, Rank] = {}
        self._wanted_ranks: dict[str, Rank] = {}
        self._serving: dict[str, WorkerRecord] = {}
        self._of_model: dict[str, list[WorkerRecord]] = {}
        self._sums: tuple[Capacity, Capacity, Capacity] | None = None
        self._positions = 0
        self._worker_ids = 0
        for model, profile in profiles.items():
            self.restore_profile(model, profile)

    @property
    def limits(self) -> Limits:
        """The limits over all models."""
        return self.catalog.limits

    @property
    def policy(self) -> EvictionPolicy:
        """The configured eviction policy."""
        return POLICIES[self.catalog.limits.policy]

    # -- requests ------------------------------------------------------------------------------

    def enqueue(self, model: str, request: QueuedRequest) -> None:
        """Add a request to the queue of this model."""
        if not self._in_use(model):
            self.version += 1
        queue = self.queues.get(model)
        if queue is None or model in self._serving:
            # Behind others that wait for a worker already, one more request changes nothing.
            self.touched.add(model)
        if queue is None:
            tokens = self.record(model).mean_tokens or DEFAULT_TOKENS
            queue = self.queues[model] = RequestQueue(tokens)
        queue.add(request)
        self.queued[request.request] = (model, request)
        insert(self.by_tenant.setdefault(request.tenant, {}), request)
        if request.rank < self._ranks.get(model, NEVER):
            self._update_rank(model)

    def next_position(self) -> int:
        """Return the next position in the order of arrival."""
        self._positions += 1
        return self._positions

    def dequeue(self, request: RequestId) -> None:
        """Remove a queued request, and its queue if that is empty then."""
        model, queued = self.queued.pop(request)
        queue = self.queues[model]
        queue.remove(request)
        of_tenant = self.by_tenant[queued.tenant]
        del of_tenant[request]
        if not of_tenant:
            del self.by_tenant[queued.tenant]
        if not queue:
            del self.queues[model]
            if not self._in_use(model):
                self.version += 1
        self.touched.add(model)
        self._update_rank(model)

    def assign(self, request: QueuedRequest, worker: WorkerRecord, now: float) -> None:
        """Take a slot, if the request needs one, and count it for its model and tenant."""
        model, tokens = worker.spec.name, 0.0
        if request.keep_alive is not None:
            worker.keep_alive = request.keep_alive
            self.touched.add(model)
        if request.needs_slot:
            record = self.record(model)
            worker.busy.add(request.request)
            record.uses += 1
            self.forecast.note(record.demand, now)
            tokens = record.mean_tokens or DEFAULT_TOKENS
        if request.request in self.queued:
            self.queues[model].grant(request, tokens, now)
            self.dequeue(request.request)
        self.assigned[request.request] = Assignment(
            worker.worker, model, now, request.tenant, request.priority, tokens, request
        )

    def release(self, request: RequestId, tokens: float | None) -> tuple[Assignment, bool]:
        """End an assignment and return it, with True if it had a slot.

        `tokens` are those that the request took; None: unknown.
        """
        assignment = self.assigned.pop(request)
        queue = self.queues.get(assignment.model)
        if queue is not None and tokens is not None and assignment.tokens:
            queue.correct(assignment.priority, assignment.tenant, tokens - assignment.tokens)
        worker = self.workers.get(assignment.worker)
        if worker is None or request not in worker.busy:
            return assignment, False
        worker.busy.remove(request)
        if not self._in_use(assignment.model):
            self.version += 1
        self.touched.add(assignment.model)
        return assignment, True

    # -- workers -------------------------------------------------------------------------------

    def add_worker(self, spec: ModelSpec, now: float, replacement: bool = False) -> WorkerRecord:
        """Add a starting worker, or a replacement beside the one that serves its model."""
        self._worker_ids += 1
        worker = WorkerRecord(
            self._worker_ids, spec, now, now + spec.serving.start_timeout, replacement=replacement
        )
        self.workers[worker.worker] = worker
        self._of_model.setdefault(spec.name, []).append(worker)
        self._workers_changed(spec.name)
        return worker

    def step(self, worker: WorkerRecord, step: Transition) -> None:
        """Change the state of a worker; one that has exited is removed."""
        worker.step(step)
        name = worker.spec.name
        if step is Transition.EXITED:
            del self.workers[worker.worker]
            self._of_model[name].remove(worker)
            if not self._of_model[name]:
                del self._of_model[name]
        self._workers_changed(name)

    def defer(self, model: str, wanted: str, now: float) -> None:
        """Rank a model whose worker is evicted behind `wanted`, though its requests are older."""
        if model in self.queues and self.rank(model) < self._wanted_ranks.get(wanted, NEVER):
            self.record(model).preempted_at = now

    def limits_changed(self) -> None:
        """Discard every result that depends on the limits or serving policies."""
        self._sums = None
        self.version += 1

    def _workers_changed(self, model: str) -> None:
        """Update the indices after a change of the model's workers or of its need."""
        self._sums = None
        self.version += 1
        serving = [r for r in self._of_model.get(model, ()) if r.state in SERVING]
        if serving:
            # A replacement serves only after its predecessor, and is none if that has gone.
            (first,) = [r for r in serving if not r.replacement] or serving
            first.replacement = False
            self._serving[model] = first
        else:
            self._serving.pop(model, None)
        self.touched.add(model)
        self._update_rank(model)

    # -- measurements --------------------------------------------------------------------------

    def record_memory(self, model: str, held: int) -> bool:
        """Record the bytes that a worker holds; the largest so far is the need of its model.

        Return True if that is more than before.
        """
        record = self.record(model)
        grown = held > record.measured
        if grown:
            record.measured = held
            self._workers_changed(model)
        return grown

    def restore_profile(self, model: str, profile: ModelProfile) -> None:
        """Replace the measurements of a model by those of an earlier run."""
        record = self.record(model)
        record.mean_load = profile.load_seconds or None
        if record.measured != profile.bytes:
            record.measured = profile.bytes
            self._workers_changed(model)

    def profile(self, model: str) -> ModelProfile:
        """Return the measurements of a model that are worth storing."""
        record = self.record(model)
        return ModelProfile(record.measured, record.mean_load or 0.0)

    def reset_failures(self, model: str) -> None:
        """Discard the failed starts of a model, because its serving policy has changed."""
        record = self.records.get(model)
        if record is not None:
            record.failures, record.backoff_until, record.reason = 0, 0.0, ""

    def forget(self, model: str) -> None:
        """Discard all measurements of a model, because its launch spec has changed."""
        self.records.pop(model, None)
        self._workers_changed(model)

    # -- ranks of wanted models ----------------------------------------------------------------

    def _update_rank(self, model: str) -> None:
        """Update the model's rank and its position in `wanted` after a change of either source."""
        queue = self.queues.get(model)
        before = self._ranks.get(model, NEVER)
        rank = queue.head().rank if queue is not None else NEVER
        self._ranks[model] = rank
        wanted = NEVER if model in self._serving else self._wanted_rank(model, rank)
        wanted_before = self._wanted_ranks.get(model, NEVER)
        # Case 1: the model enters, leaves or moves within `wanted`.
        if wanted != wanted_before:
            self._move_wanted(model, wanted_before, wanted)
        # Case 2: a model with a worker. A plan compares its rank with the wanted models before
        # the horizon; so a change counts only if it passes one of them.
        elif (
            before != rank
            and (before < self.horizon or rank < self.horizon)
            and self._count_before(before) != self._count_before(rank)
        ):
            self.version += 1
        # Case 3: the order is as before, and so is every plan.

    def _wanted_rank(self, model: str, rank: Rank) -> Rank:
        """Return the rank among the wanted models: behind those for which it was preempted."""
        record = self.records.get(model)
        return rank if record is None else max(rank, (record.preempted_at, 0))

    def _move_wanted(self, model: str, before: Rank, now: Rank) -> None:
        if min(before, now) <= self.horizon:
            self.version += 1
        if before != NEVER:
            del self.wanted[bisect_left(self.wanted, (before, model))]
            del self._wanted_ranks[model]
        if now != NEVER:
            insort(self.wanted, (now, model))
            self._wanted_ranks[model] = now

    def _count_before(self, rank: Rank) -> int:
        """Return the number of wanted models before this rank, up to the horizon."""
        return bisect_left(self.wanted, (min(rank, self.horizon), "")) if self.wanted else 0

    # -- queries -------------------------------------------------------------------------------

    def rank(self, model: str) -> Rank:
        """Return the first rank in the queue of this model; NEVER when the queue is empty."""
        return self._ranks.get(model, NEVER)

    def serving(self, model: str) -> WorkerRecord | None:
        """Return the worker that serves this model or soon will, or None."""
        return self._serving.get(model)

    def workers_of(self, model: str) -> Collection[WorkerRecord]:
        """Return the workers of this model, oldest first: a view, not to be stored."""
        return self._of_model.get(model, ())

    def models(self) -> set[str]:
        """Return all models with a worker or a queue."""
        return self._of_model.keys() | self.queues.keys()

    def _in_use(self, model: str) -> bool:
        if model in self.queues:
            return True
        worker = self._serving.get(model)
        return worker is not None and bool(worker.busy)

    def record(self, model: str) -> ModelRecord:
        """Return the measurements of this model."""
        record = self.records.get(model)
        if record is None:
            record = self.records[model] = ModelRecord()
        return record

    def load_seconds(self, model: str) -> float:
        """Return the mean load time of this model in seconds; 0 when it never loaded."""
        record = self.records.get(model)
        return 0.0 if record is None else record.mean_load or 0.0

    def in_flight(self, model: str) -> bool:
        """Return True if any request for this model is queued or served."""
        return model in self.queues or any(r.busy for r in self._of_model.get(model, ()))

    def size(self, spec: ModelSpec) -> int:
        """Return the bytes that a worker of this model takes: measured, else estimated."""
        record = self.records.get(spec.name)
        return (record.measured if record is not None else 0) or spec.serving.need_bytes

    def need(self, spec: ModelSpec) -> Capacity:
        """Return the capacity that a worker of this model takes."""
        return Capacity(1, self.size(spec))

    def total(self, workers: Iterable[WorkerRecord]) -> Capacity:
        """Return the capacity that these workers take together."""
        return sum((self.need(r.spec) for r in workers), Capacity())

    def taken(self) -> Capacity:
        """Return the capacity that all workers alive take, those that leave included."""
        return self._all_sums()[0]

    def staying_capacity(self) -> Capacity:
        """Return the capacity that the workers take which are not leaving."""
        return self._all_sums()[1]

    def pinned_capacity(self) -> Capacity:
        """Return the share of `staying_capacity` that pinned workers take."""
        return self._all_sums()[2]

    def _all_sums(self) -> tuple[Capacity, Capacity, Capacity]:
        if self._sums is None:
            taken = stays = pinned = stay_bytes = pinned_bytes = taken_bytes = 0
            for r in self.workers.values():
                size = self.size(r.spec)
                taken += 1
                taken_bytes += size
                if r.state not in LEAVING:
                    stays += 1
                    stay_bytes += size
                    if r.spec.serving.pinned:
                        pinned += 1
                        pinned_bytes += size
            self._sums = (
                Capacity(taken, taken_bytes),
                Capacity(stays, stay_bytes),
                Capacity(pinned, pinned_bytes),
            )
        return self._sums

    def staying(self) -> Iterator[WorkerRecord]:
        """Yield the workers that are not leaving."""
        return (r for r in self.workers.values() if r.state not in LEAVING)

    def __repr__(self) -> str:
        workers = ", ".join(
            f"{r.worker}:{r.spec.name} {r.state.value} {len(r.busy)}/{r.slots}"
            for r in self.workers.values()
        )
        queues = ", ".join(f"{model}: {list(q)}" for model, q in self.queues.items())
        return f"[{workers}] queued {{{queues}}} assigned {sorted(self.assigned)}"
