"""What holds for every history of events, and that planted faults break it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from swapd.domain import events as ev
from swapd.domain.commands import Stop
from swapd.domain.models import Catalog, Limits
from swapd.scheduler.admission import Rejection
from swapd.scheduler.eviction import PressureLevel, pressure_level
from swapd.scheduler.lifecycle import WorkerState
from swapd.scheduler.queue import QueuedRequest
from swapd.scheduler.scheduler import Scheduler
from swapd.scheduler.state import NEVER, Capacity, WorkerRecord, missing
from tests.scheduler.catalogs import catalog
from tests.scheduler.histories import Deed, follow, histories, worlds
from tests.scheduler.machine import BreachError, Machine
from tests.scheduler.machine_worker import SERVE_MOST

QUICK = settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=20_000)


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


@settings(QUICK, max_examples=200)
@given(worlds, histories)
def test_the_same_events_give_the_same_orders(world: Catalog, history: list[Deed]) -> None:
    assert follow(world, history).history == follow(world, history).history


class LooksAtAll(Scheduler):
    """Looks at every model in each pass, and plans anew each time."""

    def _settle(self, now: float, pressure: PressureLevel) -> None:
        self._look_at_all = True
        self._plan.version = -1
        self._books.horizon = NEVER
        super()._settle(now, pressure)


@settings(QUICK, max_examples=300)
@given(worlds, histories)
def test_a_pass_leaves_out_only_what_has_nothing_to_do(world: Catalog, history: list[Deed]) -> None:
    assert follow(world, history).history == follow(world, history, LooksAtAll).history


class VictimLeftReady(Scheduler):
    """Stops a worker and goes on granting to it."""

    def _stop(self, resident: WorkerRecord, because: str, now: float) -> None:
        assert now >= 0
        self._orders.append(Stop(resident.worker, because))


class GrantWithoutSlot(Scheduler):
    """Sees one slot more than there is."""

    def _admissible(self, resident: WorkerRecord, now: float) -> QueuedRequest | None:
        queue = self._books.queues.get(resident.spec.name)
        if queue is not None and len(resident.busy) <= resident.slots:
            return queue.next(resident.slots, now)
        return super()._admissible(resident, now)


class ForgottenQueueEntry(Scheduler):
    """Loses a request that waits when its worker comes up."""

    def _came_up(self, event: ev.WorkerReady) -> None:
        super()._came_up(event)
        queue = self._books.queues.get(self._books.residents[event.worker].spec.name)
        if queue and len(queue) > 1:
            self._books.dequeue(list(queue)[-1])


def with_other_limits(
    faulty: Scheduler, limits: Limits, now: float, pressure: PressureLevel
) -> None:
    """A settle pass that goes by limits which are not those of the configuration."""
    real = faulty._catalog
    faulty._catalog = Catalog(real.models, limits)
    Scheduler._settle(faulty, now, pressure)
    faulty._catalog = real


class BudgetOffByOne(Scheduler):
    """Finds that one byte more than the budget fits too."""

    def _settle(self, now: float, pressure: PressureLevel) -> None:
        limits = self._catalog.limits
        more = limits.budget_bytes + 1 if limits.budget_bytes else 0
        with_other_limits(self, replace(limits, budget_bytes=more), now, pressure)


class PlaceOffByOne(Scheduler):
    """Finds that one worker more than allowed fits too."""

    def _settle(self, now: float, pressure: PressureLevel) -> None:
        limits = self._catalog.limits
        more = limits.max_resident + 1 if limits.max_resident else 0
        with_other_limits(self, replace(limits, max_resident=more), now, pressure)


class BusyVictim(Scheduler):
    """Takes a busy worker for idle when it is told to unload."""

    def _unload_asked(self, event: ev.UnloadRequested) -> None:
        for resident in self._books.residents.values():
            if resident.state is WorkerState.READY:
                self._stop(resident, "unloaded by hand", event.now)


class NeverYields(Scheduler):
    """Lets a busy model take new requests for ever while an older request needs its room."""

    def _place(self, now: float) -> set[str]:
        released = super()._place(now)
        self._plan.going.clear()
        return released


class LostWake(Scheduler):
    """Forgets to ask to be woken."""

    def _wish_to_wake(self, now: float) -> None:
        pass


class LoadsForNobody(Scheduler):
    """Keeps on loading a model whose clients have all left."""

    def _dismissal(self, resident: WorkerRecord, now: float) -> str:
        if resident.state is WorkerState.STARTING:
            return ""
        return super()._dismissal(resident, now)


class WholesalePressure(Scheduler):
    """Takes every idle worker for one look at the memory."""

    def _pressure(self, event: ev.Event) -> PressureLevel:
        return pressure_level(event, self._catalog.limits)


class PinsForgotten(Scheduler):
    """Takes a pinned worker's idleness for anybody's."""

    def _dismissal(self, resident: WorkerRecord, now: float) -> str:
        late = resident.spec.serving.ttl and now >= resident.last_used + resident.spec.serving.ttl
        if resident.idle and late and resident.spec.name not in self._books.queues:
            return "idle"
        return super()._dismissal(resident, now)


class PinsOverlooked(Scheduler):
    """Lets a request wait for room that pinned models never give up."""

    def _hopeless(self, model: str, now: float) -> Rejection | None:
        refusal = super()._hopeless(model, now)
        return None if refusal and "pinned" in refusal.message else refusal


class CountsGuests(Scheduler):
    """Forgets a granted request when its worker has gone."""

    def _finished(self, event: ev.RequestFinished) -> None:
        if event.answered:
            super()._finished(event)


FAULTS: list[Callable[[Catalog], Scheduler]] = [
    VictimLeftReady,
    GrantWithoutSlot,
    ForgottenQueueEntry,
    BudgetOffByOne,
    PlaceOffByOne,
    BusyVictim,
    LostWake,
    LoadsForNobody,
    PinsForgotten,
    PinsOverlooked,
    CountsGuests,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_planted_fault_is_found(fault: Callable[[Catalog], Scheduler]) -> None:
    @settings(QUICK, max_examples=10_000, phases=[Phase.generate], database=None, derandomize=True)
    @given(worlds, histories)
    def search(world: Catalog, history: list[Deed]) -> None:
        follow(world, history, fault)

    with pytest.raises((BreachError, KeyError)):
        search()


def unending_use_of_another_model(make: Callable[[Catalog], Scheduler]) -> Machine:
    """One place, model a kept busy by clients that overlap; then somebody asks for b."""
    world = catalog({"a": 1, "b": 1}, Limits(max_resident=1, max_turn=5.0), slots=2)
    machine = Machine(make(world))
    for _ in range(4):
        machine.arrive("a")
    other = machine.arrive("b")
    for _ in range(120):
        machine.advance(SERVE_MOST / 2)
        machine.arrive("a")
    assert other in machine.ended
    machine.settle_down()
    return machine


def test_nobody_waits_for_ever_behind_a_busy_model() -> None:
    unending_use_of_another_model(Scheduler)


def test_a_model_that_never_yields_is_found() -> None:
    with pytest.raises(BreachError, match="waits too long"):
        unending_use_of_another_model(NeverYields)


def test_two_victims_of_one_look_at_the_memory_are_found() -> None:
    world = catalog({"a": 1, "b": 1}, Limits(threshold_percent=75.0))
    deeds: list[Deed] = [("arrive", 0, 0.0), ("arrive", 1, 0.0), ("up", 0, 0.0), ("up", 0, 0.0)]
    deeds += [("finish", 0, 0.0), ("finish", 0, 0.0), ("press", 0, 0.0)]
    follow(world, deeds)
    with pytest.raises(BreachError, match="before the first is gone"):
        follow(world, deeds, WholesalePressure)


def test_limits_may_be_absent() -> None:
    assert not missing(Capacity(1000, 10**15), Limits())
