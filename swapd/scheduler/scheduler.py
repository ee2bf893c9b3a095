"""The scheduler: events in, commands out.

Theory of operation
===================

`Scheduler.handle` applies one event to the state (see `handlers`), then runs the settle pass,
which derives everything that follows from the change. Five rules hold:

- A command is in effect from the moment it is emitted; the state changes here, not when the
  supervisor reports the effect.
- Every event ends in the same settle pass, which alone makes decisions across models. It looks at
  the models that something changed for and at the workers whose timer has expired, and emits the
  same commands as a pass over all of them.
- Every RequestArrived ends in exactly one of Reject, RequestCancelled or RequestFinished.
- A decision that depends on the queues is derived and never stored: a busy worker is preempted
  for as long as an older request needs its capacity, and no longer. The placement plan is kept
  only while a new one would be equal.
- Time is a number in the event; the scheduler reads no clock.

The settle pass has these steps:

1. Replace outdated workers, whose launch spec a reload has changed. The replacement starts beside
   the old worker, which serves until it is ready, if there is capacity for both. Otherwise, or if
   the replacement fails beside it, the old worker drains first: the configuration counts, even if
   the old one worked.
2. Reject the unservable: queued requests for models that cannot be started.
3. Stop the expired: workers that are unclaimed, drained, or idle for longer than their limit.
4. Evict for memory pressure: one worker for a sample.
5. Evict over the limits, after a reload lowered them or a measurement raised a need.
6. Place wanted models: evict for them, start those that fit, as far as the memory is free in
   fact, and prefetch the files of the next one.
7. Assign queued requests to workers with free slots.
8. Enforce deadlines: kill workers that miss theirs, check liveness, update the timers.
9. Set the timer for the next time at which a pass is due without an event.

Models that wait for capacity get it by the rank of their first request: by arrival, brought
forward by priority. A worker whose capacity is wanted goes on serving for a time slice (see
`turns`) and is then preempted, and its model ranks behind those that it was preempted for. So a
wait is bounded: for each model before it at most a time slice, the time of the requests that run
at its end, one stop and one start; then within its queue (see `queue`) the requests of its own
tenant before it, each with as many tokens of every other tenant, and once the lead of each tenant
that returns or has fewer requests. Before the next request of its own tenant it waits for two
minutes at most, if as many are served in that time as there are tenants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from swapd.domain import events as ev
from swapd.domain.commands import Command, RejectReason
from swapd.domain.models import Catalog, ModelProfile, ModelSpec
from swapd.domain.status import QueueEstimate, WorkerStatus
from swapd.scheduler import eviction, handlers
from swapd.scheduler.admission import CLOSING, cannot_start, memory_held_elsewhere, no_capacity
from swapd.scheduler.emitter import CHANGED, PRESSURE, UNCLAIMED, Emitter
from swapd.scheduler.eviction import PressureLevel
from swapd.scheduler.groups import group_of
from swapd.scheduler.handlers import MAX_BACKOFF
from swapd.scheduler.lifecycle import WORKING, WorkerState
from swapd.scheduler.placement import candidate, evictable, is_valid, make_plan
from swapd.scheduler.queue import QueuedRequest
from swapd.scheduler.records import Capacity, Rejection, WorkerRecord, missing
from swapd.scheduler.state import SchedulerState

FREE_MEMORY_TIMEOUT = 10.0
"""Seconds for which a model waits for memory that other programs hold."""
FREE_MEMORY_INTERVAL = 0.5
"""Seconds from one query of the free memory to the next."""
LATE = 1.0
"""Seconds of delay of a liveness check that mean that swapd itself was suspended."""
SHUTDOWN = "swapd is shutting down"
NO_PROFILES: Mapping[str, ModelProfile] = MappingProxyType({})


class Scheduler:
    """Scheduler of all models. Events enter through `handle` alone.

    `profiles` are the measurements of earlier runs.
    """

    def __init__(
        self, catalog: Catalog, profiles: Mapping[str, ModelProfile] = NO_PROFILES
    ) -> None:
        self._state = SchedulerState(catalog, profiles)
        self._emit = Emitter(self._state)

    def handle(self, event: ev.Event) -> list[Command]:
        """Apply an event; return the commands that follow, in order."""
        handlers.apply(self._state, event, self._emit)
        settle(self._state, event.now, self._emit)
        return self._emit.flush()

    @property
    def catalog(self) -> Catalog:
        """The catalog of the last reload."""
        return self._state.catalog

    @property
    def tracks_fingerprints(self) -> bool:
        """True while requests must carry fingerprints because a worker crashed recently."""
        return bool(self._state.quarantine)

    @property
    def at_rest(self) -> bool:
        """True if no request is queued or served and no worker is alive."""
        return _is_at_rest(self._state)

    def status(self) -> list[WorkerStatus]:
        """Return the status of every worker, oldest first."""
        state, found = self._state, []
        for r in state.workers.values():
            expires_at = _expires_at(state, r)
            found.append(
                WorkerStatus(
                    worker=r.worker,
                    model=r.spec.name,
                    state=r.state.value,
                    busy=len(r.busy),
                    slots=r.slots,
                    since=r.since,
                    idle_since=r.last_used if r.idle else None,
                    expires_at=expires_at if expires_at < math.inf else None,
                    bytes=state.size(r.spec),
                )
            )
        return found

    def waiting(self, model: str) -> int:
        """Return the number of queued requests for this model."""
        return len(self._state.queues.get(model, ()))

    def queue_estimate(self, model: str, now: float) -> QueueEstimate:
        """Return the prospects of a request that is queued for this model."""
        worker = self._state.serving(model)
        starting = worker is not None and worker.state is WorkerState.STARTING
        return QueueEstimate(
            waiting=self.waiting(model),
            ready=worker is not None and worker.state is WorkerState.READY,
            loading_for=now - worker.since if worker is not None and starting else None,
            usual_load=self._state.load_seconds(model),
        )

    def __repr__(self) -> str:
        state = self._state
        closing = "" if state.closing is None else f" closing by {state.closing:g}"
        return f"<Scheduler {state!r}{closing} timer {state.timer}>"


# -- the settle pass ---------------------------------------------------------------------------


def settle(state: SchedulerState, now: float, emit: Emitter) -> None:
    """Decide and emit everything that follows from the last event."""
    # 1. Replace outdated workers.
    if state.outdated:
        replace_outdated(state, now, emit)
    models = _due_models(state, now)
    if models:
        # 2. Reject the unservable.
        reject_unservable(state, models, now, emit)
        # 3. Stop the expired.
        stop_expired(state, models, now, emit)
    # 4. Evict for memory pressure.
    if state.pressure is not PressureLevel.NONE:
        evict_for_pressure(state, now, emit)
    # 5. Evict over the limits; needless if nothing has changed since the last plan.
    if state.plan.version != state.version:
        evict_over_limits(state, now, emit)
    if models or state.touched or not _is_executed(state, now):
        # 6. Place wanted models. Those whose worker is no longer preempted may assign again.
        models |= place(state, now, emit)
        # 7. Assign queued requests.
        assign_queued(state, models, now, emit)
        # 8. Enforce deadlines.
        enforce_deadlines(state, models | state.touched, now, emit)
    # 9. Set the timer.
    set_timer(state, now, emit)
    # The reports of the event hold for this pass alone.
    state.pressure = PressureLevel.NONE
    state.memory_waiters.free = None


def _due_models(state: SchedulerState, now: float) -> set[str]:
    """Return the models that this pass must look at."""
    models, state.touched = state.touched, set()
    if state.all_touched or state.closing is not None:
        state.all_touched = False
        return state.models()
    if state.timers.soonest <= now:
        for worker in state.timers.due(now):
            models.add(state.workers[worker].spec.name)
    return models


def _is_executed(state: SchedulerState, now: float) -> bool:
    """Return True if nothing of the plan is left to execute and a new one would be equal."""
    plan = state.plan
    return not (plan.start or plan.rejected) and is_valid(plan, state, now)


# -- step 1: replace outdated workers ----------------------------------------------------------


def replace_outdated(state: SchedulerState, now: float, emit: Emitter) -> None:
    """Start a replacement beside each outdated worker, or drain that one."""
    waiters = state.memory_waiters
    for worker_id in list(state.outdated):
        worker = state.workers.get(worker_id)
        spec = replacement_spec(state, worker) if worker is not None else None
        if worker is None or spec is None:
            del state.outdated[worker_id]
        elif not may_start_beside(state, spec):
            del state.outdated[worker_id]
            emit.drain(worker, CHANGED)
        elif not state.limits.require_free_memory or waiters.free is not None:
            del state.outdated[worker_id]
            emit.start(spec, now, replacement=True)
        elif waiters.should_query(state.version, now):
            emit.query_free_memory()


def replacement_spec(state: SchedulerState, worker: WorkerRecord) -> ModelSpec | None:
    """Return the spec of the replacement, or None if the worker needs none.

    It needs none if it leaves anyway, is up to date again, or has a replacement.
    """
    spec = state.catalog.models.get(worker.spec.name)
    if (
        spec is None
        or worker.state is not WorkerState.READY
        or worker.spec.same_process(spec)
        or any(r.state is WorkerState.STARTING for r in state.workers_of(spec.name))
    ):
        return None
    return spec


def may_start_beside(state: SchedulerState, spec: ModelSpec) -> bool:
    """Return True if there is capacity for a second worker and no model waits for it.

    Never for members of a group: its rules may mean that one of them fills the machine.
    """
    limits, need = state.limits, state.need(spec)
    if state.closing is not None or state.wanted or group_of(spec.name, limits):
        return False
    if missing(state.taken() + need, limits):
        return False
    free = state.memory_waiters.free
    if not limits.require_free_memory or free is None:
        return True
    return _loading_bytes(state) + need.bytes <= free


def _loading_bytes(state: SchedulerState) -> int:
    """Return the bytes that workers which are not ready may still take."""
    return sum(state.size(r.spec) for r in state.workers.values() if r.is_loading)


# -- step 2: reject the unservable -------------------------------------------------------------


def reject_unservable(state: SchedulerState, models: set[str], now: float, emit: Emitter) -> None:
    """Reject the queued requests of models that cannot be served."""
    for model in sorted(state.queues.keys() & models):
        rejection = unservable(state, model, now)
        if rejection is not None:
            emit.reject_all(model, rejection)


def unservable(state: SchedulerState, model: str, now: float) -> Rejection | None:
    """Return the reason for which requests for this model cannot be served, or None."""
    served = state.serving(model) is not None
    if state.closing is not None and (now >= state.closing or not served):
        return CLOSING
    spec = state.catalog.models.get(model)
    if spec is None:
        return Rejection(RejectReason.UNKNOWN_MODEL, f"there is no model {model!r} any more")
    return None if served else cannot_start(state, state.catalog, spec, now)


# -- step 3: stop the expired ------------------------------------------------------------------


def stop_expired(state: SchedulerState, models: set[str], now: float, emit: Emitter) -> None:
    """Stop workers that are unclaimed, drained, or idle for longer than their limit."""
    for worker in _workers_of(state, models):
        reason = stop_reason(state, worker, now)
        if reason:
            emit.stop(worker, reason, now)


def stop_reason(state: SchedulerState, worker: WorkerRecord, now: float) -> str:
    """Return the reason to stop this worker, apart from all others; empty: it stays."""
    wanted = worker.spec.name in state.queues
    if worker.state is WorkerState.STARTING:
        claimed = wanted or (worker.replacement and state.closing is None)
        return "" if claimed else UNCLAIMED
    if worker.state is WorkerState.DRAINING:
        return "" if worker.busy else worker.reason
    if wanted or not worker.idle:
        return ""
    if state.closing is not None:
        return SHUTDOWN
    if now >= _expires_at(state, worker):
        return f"idle for {worker.idle_limit(state.policy.uses_ttl):g} s"
    return ""


# -- steps 4 and 5: evict for pressure and over the limits -------------------------------------


def evict_for_pressure(state: SchedulerState, now: float, emit: Emitter) -> None:
    """Evict one worker because of memory pressure.

    One at a time: while its memory is not free yet, a further sample has no new information.
    """
    if not is_relieving(state):
        victim = _first_victim(state, now, busy_too=state.pressure is PressureLevel.BUSY)
        if victim is not None:
            emit.stop(victim, PRESSURE, now)


def is_relieving(state: SchedulerState) -> bool:
    """Return True while a worker that was evicted for pressure has not exited."""
    return any(r.reason == PRESSURE for r in state.workers.values())


def evict_over_limits(state: SchedulerState, now: float, emit: Emitter) -> None:
    """Evict idle workers while those that stay exceed the limits."""
    while missing(state.staying_capacity(), state.limits):
        victim = _first_victim(state, now)
        if victim is None:
            return
        emit.stop(victim, "over the memory limits", now)


def _first_victim(state: SchedulerState, now: float, busy_too: bool = False) -> WorkerRecord | None:
    """Return the idle worker of least value, else a busy one if allowed, or None."""
    candidates = (candidate(state, r, now) for r in evictable(state))
    victim = eviction.select_victim(state.policy, candidates, busy_too)
    return None if victim is None else state.workers[victim]


# -- step 6: place wanted models ---------------------------------------------------------------


def place(state: SchedulerState, now: float, emit: Emitter) -> set[str]:
    """Execute the placement plan, a new one if the last is outdated.

    Return the models whose workers were preempted by the last plan and no longer are.
    """
    before = plan = state.plan
    if not is_valid(plan, state, now):
        plan = state.plan = make_plan(state, now)
        state.horizon = plan.horizon
    # 1. Idle victims are stopped; busy ones get no new requests and are stopped when idle.
    for worker_id, wanted in plan.victims.items():
        victim = state.workers[worker_id]
        if victim.idle:
            state.defer(victim.spec.name, wanted, now)
            emit.stop(victim, f"makes room for {wanted}", now)
    # 2. Models for which no worker may be evicted are rejected.
    for spec, short in plan.rejected:
        retry_after = max(1.0, min(state.timers.soonest - now, MAX_BACKOFF))
        emit.reject_all(spec.name, no_capacity(spec, short, state.limits, retry_after))
    # 3. Models that fit are started, and the next one is prefetched.
    for spec in affordable(state, plan.start, now, emit):
        emit.start(spec, now)
    emit.prefetch(state.wanted[0][1] if state.wanted else "")
    if plan is before:
        return set()
    released = before.victims.keys() - plan.victims.keys()
    return {state.workers[w].spec.name for w in released if w in state.workers}


def affordable(
    state: SchedulerState, wanted: list[ModelSpec], now: float, emit: Emitter
) -> list[ModelSpec]:
    """Return the models, in order, for which the memory is free in fact; query that first."""
    waiters = state.memory_waiters
    if waiters.since:
        waiters.retain({spec.name for spec in wanted})
    if not wanted or not state.limits.require_free_memory:
        return wanted
    if waiters.free is None:
        if waiters.should_query(state.version, now):
            emit.query_free_memory()
        return []
    free, found = waiters.free - _loading_bytes(state), list[ModelSpec]()
    for spec in wanted:
        need = state.size(spec)
        if need > free and not runs_alone(state, spec, need):
            _free_memory(state, spec, Capacity(0, need - max(free, 0)), now, emit)
            break
        waiters.remove(spec.name)
        free -= need
        found.append(spec)
    return found


def runs_alone(state: SchedulerState, spec: ModelSpec, need: int) -> bool:
    """Return True for a model of which is known only that it must run alone, if it would."""
    others = any(r.spec.name != spec.name for r in state.workers.values())
    return not others and 0 < state.limits.budget_bytes <= need


def _free_memory(
    state: SchedulerState, spec: ModelSpec, short: Capacity, now: float, emit: Emitter
) -> None:
    """Evict idle workers for memory that other programs hold, else wait, and reject in the end."""
    waiters = state.memory_waiters
    settled = WorkerState.READY, WorkerState.DRAINING
    if any(r.state not in settled for r in state.workers.values()):
        return  # The next event of a worker that starts or leaves has news.
    idle = [
        candidate(state, r, now)
        for r in evictable(state)
        if r.idle and r.ready_since + r.spec.serving.min_residency <= now
    ]
    policy = state.policy
    victims = eviction.choose(policy, short, idle) if policy.evicts else None
    if victims:
        for victim in victims:
            emit.stop(state.workers[victim], f"makes room for {spec.name}", now)
    elif now >= waiters.add(spec.name, now) + FREE_MEMORY_TIMEOUT:
        waiters.remove(spec.name)
        emit.reject_all(spec.name, memory_held_elsewhere(spec, state.size(spec), short.bytes))
        if state.wanted:
            emit.query_free_memory()
    else:
        waiters.query_at = now + FREE_MEMORY_INTERVAL


# -- step 7: assign queued requests ------------------------------------------------------------


def assign_queued(state: SchedulerState, models: set[str], now: float, emit: Emitter) -> None:
    """Assign queued requests of these models to their workers, unless those are preempted."""
    # An assignment leaves nothing to the next pass.
    touched = set(state.touched)
    for model in sorted(models) if len(models) > 1 else models:
        worker = state.serving(model)
        if worker is None or worker.state is not WorkerState.READY:
            continue
        if worker.worker not in state.plan.victims:
            while request := assignable(state, worker, now):
                emit.assign(request, worker, now)
    state.touched = touched


def assignable(state: SchedulerState, worker: WorkerRecord, now: float) -> QueuedRequest | None:
    """Return the next queued request of the worker's model, if the worker can serve it now."""
    queue = state.queues.get(worker.spec.name)
    if queue is None:
        return None
    free = worker.free_slots > 0
    if not (free or queue.slotless):
        return None
    request = queue.next(worker.slots, now)
    if request.isolated and worker.busy:
        return None
    return request if free or not request.needs_slot else None


# -- step 8: enforce deadlines -----------------------------------------------------------------


def enforce_deadlines(state: SchedulerState, models: set[str], now: float, emit: Emitter) -> None:
    """Check the deadlines of the workers of these models, and update their timers."""
    for worker in _workers_of(state, models):
        enforce_deadline(state, worker, now, emit)
        state.timers.set(worker.worker, _next_due(state, worker))


def enforce_deadline(
    state: SchedulerState, worker: WorkerRecord, now: float, emit: Emitter
) -> None:
    """Check the liveness of a worker when that is due; kill it at its deadline."""
    if now >= worker.check_at:
        _check_liveness(worker, now, emit)
    if worker.state is WorkerState.KILLED:
        return
    if state.closing is not None and now >= state.closing:
        emit.kill(worker, SHUTDOWN)
    elif worker.deadline is None or now < worker.deadline:
        return
    elif worker.state is WorkerState.STARTING:
        limit = worker.spec.serving.start_timeout
        worker.start_failure = f"it was not ready within {limit:g} s"
        emit.kill(worker, worker.start_failure)
    else:
        emit.kill(worker, f"it did not end within {worker.spec.serving.stop_grace:g} s")


def _check_liveness(worker: WorkerRecord, now: float, emit: Emitter) -> None:
    late, worker.check_at = now > worker.check_at + LATE, math.inf
    if not worker.busy or worker.state not in WORKING:
        return
    if late:
        # swapd itself was suspended, perhaps with the whole machine: the timeout starts anew.
        worker.last_progress = now
        emit.watch(worker, now)
    else:
        emit.check_liveness(worker)


def _next_due(state: SchedulerState, worker: WorkerRecord) -> float:
    """Return the time at which the pass must look at this worker without an event."""
    if worker.state is WorkerState.KILLED:
        return math.inf
    due = _expires_at(state, worker) if worker.deadline is None else worker.deadline
    return min(due, worker.check_at)


# -- step 9: set the timer ---------------------------------------------------------------------


def set_timer(state: SchedulerState, now: float, emit: Emitter) -> None:
    """Set the timer for the next time at which a pass is due without an event."""
    soonest = min(state.timers.soonest, state.memory_waiters.query_at)
    if state.workers:
        soonest = min(soonest, state.sample_at, state.plan.replan_at)
    if state.closing is not None and now < state.closing and not _is_at_rest(state):
        soonest = min(soonest, state.closing)
    emit.set_timer(None if soonest == math.inf else soonest)


# -- queries of several steps ------------------------------------------------------------------


def _is_at_rest(state: SchedulerState) -> bool:
    return not (state.workers or state.queued or state.assigned)


def _workers_of(state: SchedulerState, models: Iterable[str]) -> list[WorkerRecord]:
    """Return the workers of these models, oldest first."""
    found = [r for model in models for r in state.workers_of(model)]
    if len(found) > 1:
        found.sort(key=lambda r: r.worker)
    return found


def _expires_at(state: SchedulerState, worker: WorkerRecord) -> float:
    """Return the time at which idleness ends a worker; infinite if it is busy, or stays."""
    if not worker.idle:
        return math.inf
    return worker.last_used + worker.idle_limit(state.policy.uses_ttl)
