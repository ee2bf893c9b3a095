"""What each fact changes in the books. What follows from it is the settle pass's to find."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from swapd.core.desk import CHANGED, NOTHING, PRESSURE, Desk
from swapd.core.ledger import mean
from swapd.core.lifecycle import WORKING, State, Step
from swapd.core.queue import Waiting
from swapd.core.refusals import CLOSING, Verdict, too_many
from swapd.core.resident import Resident
from swapd.domain import events as ev
from swapd.domain.commands import Why
from swapd.domain.models import Catalog, Learned

COOL_DOWN = 1.0
"""Seconds that a model rests after a failed start; doubled with each one more in a row."""
COOL_DOWN_MOST = 60.0
ACCIDENTS = 2
"""How many workers in a row may end without having answered anything."""
UNKNOWN = Learned()


class Facts(Desk):
    """Takes facts in, one method for each kind."""

    def __init__(self, catalog: Catalog, learned: Mapping[str, Learned] = NOTHING) -> None:
        super().__init__(catalog, learned)
        self._handlers: dict[type, Callable[[Any], None]] = {
            ev.Arrived: self._arrived,
            ev.Left: self._left,
            ev.Finished: self._finished,
            ev.Returned: self._returned,
            ev.CameUp: self._came_up,
            ev.Exited: self._exited,
            ev.Looked: self._looked,
            ev.Sampled: self._sampled,
            ev.FreeSeen: self._free_seen,
            ev.Reloaded: self._reloaded,
            ev.UnloadAsked: self._unload_asked,
            ev.ClosingAsked: self._closing_asked,
            ev.Ticked: self._ticked,
        }

    def _arrived(self, event: ev.Arrived) -> None:
        spec, books = self._catalog.models.get(event.model), self._books
        if spec is None:
            verdict = Verdict(Why.UNKNOWN_MODEL, f"there is no model {event.model!r}")
            return self._refuse(event.request, verdict)
        if self._closing is not None:
            return self._refuse(event.request, CLOSING)
        waiting = Waiting(
            event.request,
            books.next_place(),
            event.needs_slot,
            event.now,
            event.tenant,
            event.priority + spec.priority,
            event.keep_alive,
            event.fingerprint,
        )
        if event.fingerprint and (poison := self._suspects.arrived(waiting, event.now)):
            return self._refuse(event.request, poison)
        ready = books.serving(spec.name)
        if not event.needs_slot and ready is not None and ready.state is State.READY:
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

    def _left(self, event: ev.Left) -> None:
        self._books.dequeue(event.request)

    def _finished(self, event: ev.Finished) -> None:
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

    def _returned(self, event: ev.Returned) -> None:
        granted, _ = self._books.give_back(event.request, 0.0)
        verdict = self._suspects.returned(granted.waiting, event.fingerprint, event.now)
        if verdict is not None:
            self._refuse(event.request, verdict)
        else:
            self._books.enqueue(granted.model, granted.waiting)

    def _came_up(self, event: ev.CameUp) -> None:
        resident = self._books.residents[event.worker]
        if resident.state is State.STARTING:
            self._part_from_predecessor(resident)
        self._books.step(resident, Step.CAME_UP)
        if resident.state is State.READY:
            resident.up_since = resident.last_used = event.now
            resident.deadline = None
            record = self._books.record(resident.spec.name)
            record.mean_load = mean(record.mean_load, event.now - resident.since)
            resident.told_slots = event.slots
            self._remember(resident)
            self._sample_soon(event.now)

    def _exited(self, event: ev.Exited) -> None:
        resident = self._books.residents[event.worker]
        failed_start = resident.state is State.STARTING or bool(resident.late)
        failed_serving = resident.state is State.READY and not resident.served
        served = [self._books.granted[request].waiting for request in resident.busy]
        if event.accident:
            failed_serving = False
            self._suspects.worker_killed(served)
        elif resident.hung or resident.state in WORKING:
            # What one request is the cause of says nothing of the model.
            failed_serving &= not self._suspects.worker_ended(served, resident.hung or event.reason)
        if failed_start and resident.heir:
            # Perhaps for want of what the other one holds. Without it, the next one may come up.
            self._part_from_predecessor(resident)
            failed_start = False
        self._books.step(resident, Step.EXITED)
        self._agenda.set(event.worker, math.inf)
        if self._closing is None and (failed_start or failed_serving):
            record = self._books.record(resident.spec.name)
            record.failures += 1
            record.reason = resident.late or event.reason
            # One that somebody killed met with an accident; one that came up and then died may
            # have, or with a request that ends two workers before it is found out.
            if (failed_start and not event.accident) or record.failures > ACCIDENTS:
                rest = COOL_DOWN * 2.0 ** (record.failures - 1)
                record.cool_until = event.now + min(rest, COOL_DOWN_MOST)
        if not self._books.residents:
            self._sample_at = math.inf
        elif resident.because == PRESSURE:
            self._sample_soon(event.now)

    def _part_from_predecessor(self, heir: Resident) -> None:
        """The worker whose heir this is, if it is one, takes no more requests."""
        predecessor = self._books.serving(heir.spec.name)
        if heir.heir and predecessor is not None and predecessor.state is State.READY:
            self._drain(predecessor)

    def _looked(self, event: ev.Looked) -> None:
        resident = self._books.residents.get(event.worker)
        if resident is None or not resident.busy or resident.state not in WORKING:
            return
        limit = resident.spec.hang_timeout
        resident.sign = max(resident.sign, event.sign)
        if limit and event.now >= resident.sign + limit:
            resident.hung = f"the worker hung: {limit:g} s without progress"
            self._kill(resident, resident.hung)
        else:
            self._watch(resident, event.now)
            self._books.touched.add(resident.spec.name)

    def _sampled(self, event: ev.Sampled) -> None:
        self._look_at_all = True
        for worker, held in event.held.items():
            resident = self._books.residents.get(worker)
            ready = resident is not None and resident.state is State.READY
            if resident and ready and self._books.measured(resident.spec.name, held):
                self._remember(resident)

    def _free_seen(self, event: ev.FreeSeen) -> None:
        self._scarcity.free = event.free

    def _reloaded(self, event: ev.Reloaded) -> None:
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
                    resident.sign = event.now
                    self._watch(resident, event.now)
            elif resident.state is not State.READY:
                self._stop(resident, CHANGED, event.now)
            elif new is None:
                self._drain(resident)
            else:
                self._outdated[resident.worker] = None
        self._books.terms_changed()
        self._sample_at = math.inf
        if self._books.residents:
            self._sample_soon(event.now)

    def _unload_asked(self, event: ev.UnloadAsked) -> None:
        for resident in self._books.residents.values():
            asked = event.model is None or resident.spec.name == event.model
            if asked and resident.state is State.READY:
                self._books.step(resident, Step.DRAIN)
                resident.because = "unloaded by hand"

    def _closing_asked(self, event: ev.ClosingAsked) -> None:
        self._closing = (
            event.deadline if self._closing is None else min(self._closing, event.deadline)
        )

    def _ticked(self, event: ev.Ticked) -> None:
        self._wake = None
        if event.now >= self._sample_at:
            self._sample_at = math.inf
            self._sample_soon(event.now)
