"""Invariants of every history of events, and planted faults that break them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from swapd.domain import events as ev
from swapd.domain.commands import Command, Stop
from swapd.domain.models import Catalog, Limits
from swapd.scheduler import handlers, scheduler
from swapd.scheduler.emitter import Emitter
from swapd.scheduler.lifecycle import WorkerState
from swapd.scheduler.queue import NEVER, QueuedRequest
from swapd.scheduler.records import Capacity, Rejection, WorkerRecord, missing
from swapd.scheduler.scheduler import Scheduler
from swapd.scheduler.state import SchedulerState
from tests.scheduler.catalogs import catalog
from tests.scheduler.histories import Deed, follow, histories, worlds
from tests.scheduler.machine import BreachError, Machine
from tests.scheduler.machine_worker import SERVE_MOST

QUICK = settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=20_000)


@pytest.mark.slow
@QUICK
@given(worlds, histories)
def test_every_history_keeps_the_rules(world: Catalog, history: list[Deed]) -> None:
    follow(world, history)


@pytest.mark.long
@pytest.mark.timeout(1800)
@LONG
@given(worlds, histories)
def test_every_history_keeps_the_rules_at_length(world: Catalog, history: list[Deed]) -> None:
    follow(world, history)


@pytest.mark.slow
@settings(QUICK, max_examples=200)
@given(worlds, histories)
def test_the_same_events_give_the_same_orders(world: Catalog, history: list[Deed]) -> None:
    assert follow(world, history).history == follow(world, history).history


class LooksAtAll(Scheduler):
    """A scheduler that looks at every model in each pass, and always makes a new plan."""

    def handle(self, event: ev.Event) -> list[Command]:
        """Mark everything as changed before the event is applied."""
        self._state.all_touched = True
        self._state.plan.version = -1
        self._state.horizon = NEVER
        return super().handle(event)


@pytest.mark.slow
@settings(QUICK, max_examples=300)
@given(worlds, histories)
def test_a_pass_leaves_out_only_what_has_nothing_to_do(world: Catalog, history: list[Deed]) -> None:
    assert follow(world, history).history == follow(world, history, LooksAtAll).history


def _victim_left_ready(self: Emitter, worker: WorkerRecord, reason: str, now: float) -> None:
    """Stop a worker and go on assigning requests to it."""
    assert now >= 0
    self._commands.append(Stop(worker.worker, reason))


def _assign_without_slot(
    state: SchedulerState, worker: WorkerRecord, now: float
) -> QueuedRequest | None:
    """Count one slot more than there is."""
    queue = state.queues.get(worker.spec.name)
    if queue is not None and len(worker.busy) <= worker.slots:
        return queue.next(worker.slots, now)
    return _assignable(state, worker, now)


def _lose_a_queued_request(state: SchedulerState, event: ev.WorkerReady, emit: Emitter) -> None:
    """Lose a queued request when its worker becomes ready."""
    _worker_ready(state, event, emit)
    queue = state.queues.get(state.workers[event.worker].spec.name)
    if queue and len(queue) > 1:
        state.dequeue(list(queue)[-1])


def _settle_with(state: SchedulerState, limits: Limits, now: float, emit: Emitter) -> None:
    """Run a settle pass with limits that are not those of the configuration."""
    real = state.catalog
    state.catalog = Catalog(real.models, limits)
    _settle(state, now, emit)
    state.catalog = real


def _budget_off_by_one(state: SchedulerState, now: float, emit: Emitter) -> None:
    """Allow one byte more than the budget."""
    limits = state.limits
    more = limits.budget_bytes + 1 if limits.budget_bytes else 0
    _settle_with(state, replace(limits, budget_bytes=more), now, emit)


def _workers_off_by_one(state: SchedulerState, now: float, emit: Emitter) -> None:
    """Allow one worker more than the limit."""
    limits = state.limits
    more = limits.max_resident + 1 if limits.max_resident else 0
    _settle_with(state, replace(limits, max_resident=more), now, emit)


def _busy_victim(state: SchedulerState, event: ev.UnloadRequested, emit: Emitter) -> None:
    """Stop busy workers like idle ones on a request to unload."""
    for worker in list(state.workers.values()):
        if worker.state is WorkerState.READY:
            emit.stop(worker, "unloaded by hand", event.now)


def _never_preempt(state: SchedulerState, now: float, emit: Emitter) -> set[str]:
    """Let a busy model get new requests without end while an older request waits."""
    released = _place(state, now, emit)
    state.plan.victims.clear()
    return released


def _lost_timer(state: SchedulerState, now: float, emit: Emitter) -> None:
    """Set no timer."""


def _load_unclaimed(state: SchedulerState, worker: WorkerRecord, now: float) -> str:
    """Go on loading a model whose clients have all left."""
    if worker.state is WorkerState.STARTING:
        return ""
    return _stop_reason(state, worker, now)


def _pins_forgotten(state: SchedulerState, worker: WorkerRecord, now: float) -> str:
    """Let idleness end a pinned worker like any other."""
    ttl = worker.spec.serving.ttl
    late = ttl and now >= worker.last_used + ttl
    if worker.idle and late and worker.spec.name not in state.queues:
        return "idle"
    return _stop_reason(state, worker, now)


def _pins_overlooked(state: SchedulerState, model: str, now: float) -> Rejection | None:
    """Let a request wait for capacity that pinned models never free."""
    rejection = _unservable(state, model, now)
    return None if rejection and "pinned" in rejection.message else rejection


def _leak_assignments(state: SchedulerState, event: ev.RequestFinished, emit: Emitter) -> None:
    """Keep an assignment when its worker has exited."""
    if event.answered:
        _request_finished(state, event, emit)


_assignable, _settle, _place = scheduler.assignable, scheduler.settle, scheduler.place
_stop_reason, _unservable = scheduler.stop_reason, scheduler.unservable
_worker_ready, _request_finished = handlers.worker_ready, handlers.request_finished

FAULTS: list[tuple[object, str, object]] = [
    (Emitter, "stop", _victim_left_ready),
    (scheduler, "assignable", _assign_without_slot),
    (handlers, "worker_ready", _lose_a_queued_request),
    (scheduler, "settle", _budget_off_by_one),
    (scheduler, "settle", _workers_off_by_one),
    (handlers, "unload_requested", _busy_victim),
    (scheduler, "set_timer", _lost_timer),
    (scheduler, "stop_reason", _load_unclaimed),
    (scheduler, "stop_reason", _pins_forgotten),
    (scheduler, "unservable", _pins_overlooked),
    (handlers, "request_finished", _leak_assignments),
]
"""Place, name and replacement of each planted fault."""


def plant(patch: pytest.MonkeyPatch, place: object, name: str, fault: object) -> None:
    """Replace a function by a faulty one, in the table of handlers too."""
    right = getattr(place, name)
    patch.setattr(place, name, fault)
    for event, handler in list(handlers.HANDLERS.items()):
        if handler is right:
            patch.setitem(handlers.HANDLERS, event, fault)


def search_for_a_breach() -> None:
    """Follow random histories until one breaks a rule."""

    @settings(QUICK, max_examples=10_000, phases=[Phase.generate], database=None, derandomize=True)
    @given(worlds, histories)
    def search(world: Catalog, history: list[Deed]) -> None:
        follow(world, history)

    search()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "name", "fault"), FAULTS, ids=lambda f: getattr(f, "__name__", "")
)
def test_a_planted_fault_is_found(
    place: object, name: str, fault: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, place, name, fault)
    with pytest.raises((BreachError, KeyError)):
        search_for_a_breach()


def unending_use_of_another_model() -> Machine:
    """Play: one place, model a is kept busy by clients that overlap; then b is requested."""
    world = catalog({"a": 1, "b": 1}, Limits(max_resident=1, max_turn=5.0), slots=2)
    machine = Machine(Scheduler(world))
    for _ in range(4):
        machine.arrive("a")
    other = machine.arrive("b")
    for _ in range(120):
        machine.advance(SERVE_MOST / 2)
        machine.arrive("a")
    assert other in machine.ended
    machine.settle_down()
    return machine


def test_no_request_waits_without_end_behind_a_busy_model() -> None:
    unending_use_of_another_model()


def test_a_model_that_is_never_preempted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, scheduler, "place", _never_preempt)
    with pytest.raises(BreachError, match="waits too long"):
        unending_use_of_another_model()


def test_two_victims_of_one_memory_sample_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    world = catalog({"a": 1, "b": 1}, Limits(threshold_percent=75.0))
    deeds: list[Deed] = [("arrive", 0, 0.0), ("arrive", 1, 0.0), ("up", 0, 0.0), ("up", 0, 0.0)]
    deeds += [("finish", 0, 0.0), ("finish", 0, 0.0), ("press", 0, 0.0)]
    follow(world, deeds)
    plant(monkeypatch, scheduler, "is_relieving", lambda _: False)
    with pytest.raises(BreachError, match="before the first is gone"):
        follow(world, deeds)


def test_limits_may_be_absent() -> None:
    assert not missing(Capacity(1000, 10**15), Limits())
