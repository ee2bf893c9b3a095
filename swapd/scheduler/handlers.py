"""What each fact changes in the books. What follows from it is the settle pass's to find.

The desk: what is known and wished, and the orders as they are given. No decisions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from swapd.domain import events as ev
from swapd.domain.commands import (
    AssignWorker,
    Command,
    Kill,
    Preload,
    Reject,
    RejectReason,
    SampleMemory,
    SaveProfile,
    Start,
    Stop,
)
from swapd.domain.models import Catalog, Limits, ModelProfile, ModelSpec
from swapd.scheduler import eviction
from swapd.scheduler.admission import CLOSING, Rejection, too_many
from swapd.scheduler.eviction import POLICIES, EvictionPolicy
from swapd.scheduler.groups import belonging
from swapd.scheduler.lifecycle import WORKING, Transition, WorkerState
from swapd.scheduler.placement import MemoryWaiters, PlacementPlan, candidate, evictable
from swapd.scheduler.quarantine import Quarantine
from swapd.scheduler.queue import QueuedRequest
from swapd.scheduler.state import SchedulerState, WorkerRecord, mean
from swapd.scheduler.timers import Timers

PRESSURE = "memory pressure"
UNCLAIMED = "nobody waits for it any more"
CHANGED = "its configuration changed"
NOTHING: Mapping[str, ModelProfile] = MappingProxyType({})


class Desk:
    """The books and what stands beside them. An order is in the books as soon as it is given."""

    def __init__(self, catalog: Catalog, learned: Mapping[str, ModelProfile] = NOTHING) -> None:
        self._catalog = catalog
        self._books = SchedulerState()
        for model, known in learned.items():
            self._books.recall(model, known)
        self._orders: list[Command] = []
        self._agenda = Timers()
        self._suspects = Quarantine()
        self._plan = PlacementPlan(version=-1)
        self._look_at_all = False
        self._wake: float | None = None
        self._sample_at = math.inf
        self._closing: float | None = None
        self._scarcity = MemoryWaiters()
        self._outdated: dict[ev.WorkerId, None] = {}
        """Workers that run by what their models' entries said before."""
        self._ahead = ""
        """The model whose files were last read ahead, while it waits."""

    # -- orders --------------------------------------------------------------------------------

    def _refuse(self, request: ev.RequestId, verdict: Rejection) -> None:
        self._orders.append(Reject(request, verdict.reason, verdict.message, verdict.retry_after))

    def _refuse_all(self, model: str, verdict: Rejection) -> None:
        for request in list(self._books.queues[model]):
            self._books.dequeue(request)
            self._refuse(request, verdict)

    def _give(self, waiting: QueuedRequest, resident: WorkerRecord, now: float) -> None:
        if waiting.needs_slot and not resident.busy:
            resident.last_progress, resident.alone = now, waiting.alone
            self._watch(resident, now)
        self._books.grant(waiting, resident, now)
        self._orders.append(AssignWorker(waiting.request, resident.worker))

    def _watch(self, resident: WorkerRecord, now: float) -> None:
        """See to it that somebody looks whether it makes progress, twice within the time-out."""
        limit = resident.spec.serving.hang_timeout
        if limit and resident.look_at == math.inf:
            resident.look_at = min(now + limit / 2, resident.last_progress + limit)

    def _start(self, spec: ModelSpec, now: float, replacement: bool = False) -> None:
        resident = self._books.admit(spec, now, replacement)
        # Those that never go for others may leave no room for some who wait.
        self._look_at_all |= spec.serving.pinned or bool(self._limits.groups)
        self._orders.append(Start(resident.worker, spec))
        self._bring_others(spec.name)

    def _bring_others(self, model: str) -> None:
        """Ask for those that belong together with a model that a client wants to use.

        Not for those of one that was itself brought so: where there is not room for all, they
        would go for each other without end.
        """
        queue = self._books.queues.get(model)
        if queue is None or queue.guests == len(queue):
            return
        for other in sorted(belonging(model, self._limits)):
            if self._books.serving(other) is None and other not in self._books.queues:
                self._orders.append(Preload(other))

    def _stop(self, resident: WorkerRecord, because: str, now: float) -> None:
        self._books.step(resident, Transition.STOP)
        resident.reason = because
        resident.deadline = now + resident.spec.serving.stop_grace
        self._orders.append(Stop(resident.worker, because))
        heir = self._books.serving(resident.spec.name)
        if (
            heir
            and heir.state is WorkerState.STARTING
            and resident.spec.name not in self._books.queues
        ):
            self._stop(heir, UNCLAIMED, now)

    def _drain(self, resident: WorkerRecord) -> None:
        self._books.step(resident, Transition.DRAIN)
        resident.reason = CHANGED

    def _kill(self, resident: WorkerRecord, because: str) -> None:
        self._books.step(resident, Transition.KILL)
        resident.deadline = None
        self._orders.append(Kill(resident.worker, because, bool(resident.hung)))

    def _remember(self, resident: WorkerRecord) -> None:
        learned = self._books.learned(resident.spec.name)
        self._orders.append(SaveProfile(resident.worker, learned))

    def _sample_soon(self, now: float) -> None:
        limits = self._limits
        if limits.threshold_percent or limits.critical_percent or limits.budget_bytes:
            self._sample_at = now + limits.interval
            self._orders.append(SampleMemory())

    # -- questions -----------------------------------------------------------------------------

    @property
    def _limits(self) -> Limits:
        return self._catalog.limits

    @property
    def _policy(self) -> EvictionPolicy:
        return POLICIES[self._limits.policy]

    def _workers_of(self, models: Iterable[str]) -> list[WorkerRecord]:
        """The workers alive of these models, oldest first."""
        found = [r for model in models for r in self._books.of_model(model)]
        if len(found) > 1:
            found.sort(key=lambda r: r.worker)
        return found

    def _first_to_go(self, now: float, busy_too: bool = False) -> WorkerRecord | None:
        """The idle worker that is worth least, or a busy one if that may be; or None."""
        books = self._books
        may_go = (candidate(books, r, now) for r in evictable(books))
        victim = eviction.select_victim(self._policy, may_go, busy_too)
        return None if victim is None else books.residents[victim]

    def _lasts_until(self, resident: WorkerRecord) -> float:
        """When idleness ends it; infinite when it is not idle, or stays."""
        if not resident.idle:
            return math.inf
        return resident.last_used + resident.lasts(self._policy.uses_ttl)

    def _due(self, resident: WorkerRecord) -> float:
        """When the pass must look at this worker though nothing has happened."""
        if resident.state is WorkerState.KILLED:
            return math.inf
        due = self._lasts_until(resident) if resident.deadline is None else resident.deadline
        return min(due, resident.look_at)


COOL_DOWN = 1.0
"""Seconds that a model rests after a failed start; doubled with each one more in a row."""
COOL_DOWN_MOST = 60.0
ACCIDENTS = 2
"""How many workers in a row may end without having answered anything."""
UNKNOWN = ModelProfile()


class Facts(Desk):
    """Takes facts in, one method for each kind."""

    def __init__(self, catalog: Catalog, learned: Mapping[str, ModelProfile] = NOTHING) -> None:
        super().__init__(catalog, learned)
        self._handlers: dict[type, Callable[[Any], None]] = {
            ev.RequestArrived: self._arrived,
            ev.RequestCancelled: self._left,
            ev.RequestFinished: self._finished,
            ev.RequestRetried: self._returned,
            ev.WorkerReady: self._came_up,
            ev.WorkerExited: self._exited,
            ev.LivenessReported: self._looked,
            ev.MemorySampled: self._sampled,
            ev.FreeMemoryReported: self._free_seen,
            ev.CatalogReloaded: self._reloaded,
            ev.UnloadRequested: self._unload_asked,
            ev.ShutdownRequested: self._closing_asked,
            ev.TimerFired: self._ticked,
        }

    def _arrived(self, event: ev.RequestArrived) -> None:
        spec, books = self._catalog.models.get(event.model), self._books
        if spec is None:
            verdict = Rejection(RejectReason.UNKNOWN_MODEL, f"there is no model {event.model!r}")
            return self._refuse(event.request, verdict)
        if self._closing is not None:
            return self._refuse(event.request, CLOSING)
        waiting = QueuedRequest(
            event.request,
            books.next_place(),
            event.needs_slot,
            event.now,
            event.tenant,
            event.priority + spec.serving.priority,
            event.keep_alive,
            event.fingerprint,
        )
        if event.fingerprint and (poison := self._suspects.arrived(waiting, event.now)):
            return self._refuse(event.request, poison)
        ready = books.serving(spec.name)
        if not event.needs_slot and ready is not None and ready.state is WorkerState.READY:
            return self._give(waiting, ready, event.now)
        if refused := too_many(books, spec, self._limits, event):
            verdict, instead = refused
            if instead is None:
                return self._refuse(event.request, verdict)
            books.dequeue(instead.request)
            self._refuse(instead.request, verdict)
        self._note_pause(spec.name, event.now)
        return books.enqueue(spec.name, waiting)

    def _note_pause(self, model: str, now: float) -> None:
        """How long this model's clients stayed away, if they did."""
        record = self._books.record(model)
        if record.quiet_since is not None:
            record.mean_pause = mean(record.mean_pause, now - record.quiet_since)
            record.quiet_since = None

    def _left(self, event: ev.RequestCancelled) -> None:
        self._books.dequeue(event.request)

    def _finished(self, event: ev.RequestFinished) -> None:
        # What was answered without a word on tokens stays counted as estimated.
        known = event.tokens or not event.answered
        granted, had_slot = self._books.give_back(event.request, event.tokens if known else None)
        self._suspects.finished(granted.waiting, event.fingerprint, event.answered, event.now)
        resident = self._books.residents.get(granted.worker)
        if resident is None:
            return
        record = self._books.record(granted.model)
        if event.answered:
            resident.served += 1
            if resident.served == 1:
                # Computing took memory that loading had not, and it may not stay for another look.
                self._sample_soon(event.now)
            record.failures, record.reason = 0, ""
        if event.tokens:
            record.mean_tokens = mean(record.mean_tokens, event.tokens)
        if had_slot:
            resident.last_used = event.now
            record.mean_request = mean(record.mean_request, event.now - granted.since)
            if not self._books.in_flight(granted.model):
                record.quiet_since = event.now

    def _returned(self, event: ev.RequestRetried) -> None:
        granted, _ = self._books.give_back(event.request, 0.0)
        verdict = self._suspects.returned(granted.waiting, event.fingerprint, event.now)
        if verdict is not None:
            self._refuse(event.request, verdict)
        else:
            self._books.enqueue(granted.model, granted.waiting)

    def _came_up(self, event: ev.WorkerReady) -> None:
        resident = self._books.residents[event.worker]
        if resident.state is WorkerState.STARTING:
            self._part_from_predecessor(resident)
        self._books.step(resident, Transition.CAME_UP)
        if resident.state is WorkerState.READY:
            resident.up_since = resident.last_used = event.now
            resident.deadline = None
            record = self._books.record(resident.spec.name)
            record.mean_load = mean(record.mean_load, event.now - resident.since)
            resident.told_slots = event.slots
            self._remember(resident)
            self._sample_soon(event.now)

    def _exited(self, event: ev.WorkerExited) -> None:
        resident = self._books.residents[event.worker]
        failed_start = resident.state is WorkerState.STARTING or bool(resident.late)
        failed_serving = resident.state is WorkerState.READY and not resident.served
        served = [self._books.granted[request].waiting for request in resident.busy]
        if event.killed_externally:
            failed_serving = False
            self._suspects.worker_killed(served)
        elif resident.hung or resident.state in WORKING:
            # What one request is the cause of says nothing of the model.
            failed_serving &= not self._suspects.worker_ended(served, resident.hung or event.reason)
        if failed_start and resident.replacement:
            # Perhaps for want of what the other one holds. Without it, the next one may come up.
            self._part_from_predecessor(resident)
            failed_start = False
        self._books.step(resident, Transition.EXITED)
        self._agenda.set(event.worker, math.inf)
        if self._closing is None and (failed_start or failed_serving):
            record = self._books.record(resident.spec.name)
            record.failures += 1
            record.reason = resident.late or event.reason
            # One that somebody killed met with an accident; one that came up and then died may
            # have, or with a request that ends two workers before it is found out.
            if (failed_start and not event.killed_externally) or record.failures > ACCIDENTS:
                rest = COOL_DOWN * 2.0 ** (record.failures - 1)
                record.cool_until = event.now + min(rest, COOL_DOWN_MOST)
        if not self._books.residents:
            self._sample_at = math.inf
        elif resident.reason == PRESSURE:
            self._sample_soon(event.now)

    def _part_from_predecessor(self, heir: WorkerRecord) -> None:
        """The worker whose heir this is, if it is one, takes no more requests."""
        predecessor = self._books.serving(heir.spec.name)
        if heir.replacement and predecessor is not None and predecessor.state is WorkerState.READY:
            self._drain(predecessor)

    def _looked(self, event: ev.LivenessReported) -> None:
        resident = self._books.residents.get(event.worker)
        if resident is None or not resident.busy or resident.state not in WORKING:
            return
        limit = resident.spec.serving.hang_timeout
        resident.last_progress = max(resident.last_progress, event.last_progress)
        if limit and event.now >= resident.last_progress + limit:
            resident.hung = f"the worker hung: {limit:g} s without progress"
            self._kill(resident, resident.hung)
        else:
            self._watch(resident, event.now)
            self._books.touched.add(resident.spec.name)

    def _sampled(self, event: ev.MemorySampled) -> None:
        self._look_at_all = True
        for worker, held in event.held.items():
            resident = self._books.residents.get(worker)
            ready = resident is not None and resident.state is WorkerState.READY
            if resident and ready and self._books.measured(resident.spec.name, held):
                self._remember(resident)

    def _free_seen(self, event: ev.FreeMemoryReported) -> None:
        self._scarcity.free = event.free

    def _reloaded(self, event: ev.CatalogReloaded) -> None:
        before, self._catalog = self._catalog, event.catalog
        self._look_at_all = True
        for model, old in before.models.items():
            new = event.catalog.models.get(model)
            if new is None or not old.same_process(new):
                self._books.forget(model)
            elif new != old:
                self._books.give_another_chance(model)
        if event.learned is not None:
            for model in event.catalog.models:
                self._books.recall(model, event.learned.get(model, UNKNOWN))
        for resident in list(self._books.staying()):
            new = event.catalog.models.get(resident.spec.name)
            if new is not None and resident.spec.same_process(new):
                resident.spec = new
                if resident.busy:
                    resident.last_progress = event.now
                    self._watch(resident, event.now)
            elif resident.state is not WorkerState.READY:
                self._stop(resident, CHANGED, event.now)
            elif new is None:
                self._drain(resident)
            else:
                self._outdated[resident.worker] = None
        self._books.terms_changed()
        self._sample_at = math.inf
        if self._books.residents:
            self._sample_soon(event.now)

    def _unload_asked(self, event: ev.UnloadRequested) -> None:
        for resident in self._books.residents.values():
            asked = event.model is None or resident.spec.name == event.model
            if asked and resident.state is WorkerState.READY:
                self._books.step(resident, Transition.DRAIN)
                resident.reason = "unloaded by hand"

    def _closing_asked(self, event: ev.ShutdownRequested) -> None:
        self._closing = (
            event.deadline if self._closing is None else min(self._closing, event.deadline)
        )

    def _ticked(self, event: ev.TimerFired) -> None:
        self._wake = None
        if event.now >= self._sample_at:
            self._sample_at = math.inf
            self._sample_soon(event.now)
