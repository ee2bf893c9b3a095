"""The scheduler: facts in, orders out.

Its rules:

1. An order counts the moment it is given; the books change here, not when the effect reports.
2. Every event ends in the same settle pass; nothing else gives orders.
3. Every Arrived ends in exactly one of Refused, Left or Finished.
4. What depends on the queue is derived in each pass and never stored: a busy worker "yields" as
   long as an older request needs its room, and no longer.
5. Time is a number in the event.

Models that wait for room get it by the arrival of their oldest request. A worker whose room is
wanted goes on serving for a turn (see `fairness`) and then yields, so a wait is bounded: for each
model before it at most a turn, the time of the requests that are running at its end, one stop and
one start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from swapd.core import eviction
from swapd.core.ledger import Ledger, Resident, Waiting, mean
from swapd.core.lifecycle import State, Step
from swapd.core.placement import candidates, plan
from swapd.core.room import Room, missing
from swapd.words import events as ev
from swapd.words.catalog import Catalog, Limits, ModelSpec
from swapd.words.orders import Grant, Kill, Order, Refuse, Start, Stop, TakeSample, WakeAt, Why
from swapd.words.status import WorkerStatus

COOL_DOWN = 1.0
"""Seconds that a model rests after a failed start; doubled with each one more in a row."""
COOL_DOWN_MOST = 60.0
PRESSURE = "memory pressure"


class Scheduler:
    """Decides for all models at once. `handle` is its only door for facts."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._books = Ledger()
        self._orders: list[Order] = []
        self._wake: float | None = None
        self._sample_at = math.inf
        self._turn_ends = math.inf
        self._closing: float | None = None
        self._handlers: dict[type, Callable[[Any], None]] = {
            ev.Arrived: self._arrived,
            ev.Left: self._left,
            ev.Finished: self._finished,
            ev.CameUp: self._came_up,
            ev.Exited: self._exited,
            ev.Sampled: self._sampled,
            ev.Reloaded: self._reloaded,
            ev.UnloadAsked: self._unload_asked,
            ev.ClosingAsked: self._closing_asked,
            ev.Ticked: self._ticked,
        }

    def handle(self, event: ev.Event) -> list[Order]:
        """Take a fact in; return what is to be done, in order."""
        self._handlers[type(event)](event)
        self._settle(event.now, pressed=self._is_pressed(event))
        orders, self._orders = self._orders, []
        return orders

    # -- questions from outside --------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        return self._catalog

    @property
    def at_rest(self) -> bool:
        """Nobody waits, nothing runs."""
        books = self._books
        return not (books.residents or books.waiting_model or books.granted)

    def status(self) -> list[WorkerStatus]:
        """Every worker alive, oldest first."""
        return [
            WorkerStatus(
                worker=r.worker,
                model=r.spec.name,
                state=r.state.value,
                busy=len(r.busy),
                slots=r.slots,
                since=r.since,
                idle_since=r.last_used if r.idle else None,
                goes_at=r.last_used + r.ttl if r.idle and r.ttl else None,
                bytes=self._books.need(r.spec).bytes,
            )
            for r in self._books.residents.values()
        ]

    def waiting(self, model: str) -> int:
        """How many requests wait for this model."""
        return len(self._books.queues.get(model, ()))

    def __repr__(self) -> str:
        closing = "" if self._closing is None else f" closing by {self._closing:g}"
        return f"<Scheduler {self._books!r}{closing} wake {self._wake}>"

    # -- facts ---------------------------------------------------------------------------------

    def _arrived(self, event: ev.Arrived) -> None:
        spec = self._catalog.models.get(event.model)
        if spec is None:
            message = f"there is no model {event.model!r}"
            self._orders.append(Refuse(event.request, Why.UNKNOWN_MODEL, message))
        elif self._closing is not None:
            self._orders.append(Refuse(event.request, Why.CLOSING, "swapd is shutting down", 5.0))
        elif not event.needs_slot and (ready := self._ready(spec.name)):
            self._give(event.request, ready, event.now)
        elif refusal := self._too_many(event.request, spec):
            self._orders.append(refusal)
        else:
            self._note_pause(spec.name, event.now)
            self._books.enqueue(spec.name, event.request, event.needs_slot, event.now)

    def _note_pause(self, model: str, now: float) -> None:
        """How long this model's clients stayed away, if they did."""
        record = self._books.record(model)
        if record.quiet_since is not None:
            record.mean_pause = mean(record.mean_pause, now - record.quiet_since)
            record.quiet_since = None

    def _too_many(self, request: ev.RequestId, spec: ModelSpec) -> Refuse | None:
        """The refusal of a request for which there is no place in the queues, or None."""
        queued, total = self.waiting(spec.name), len(self._books.waiting_model)
        if queued >= spec.max_queue:
            why, what = Why.QUEUE_FULL, f"{queued} requests wait for {spec.name!r} already"
        elif 0 < self._limits.max_waiting <= total:
            why, what = Why.OVERLOADED, f"{total} requests wait already"
        else:
            return None
        retry_after = self._expected_wait(spec, queued)
        return Refuse(request, why, f"{what}, which is the limit", retry_after)

    def _left(self, event: ev.Left) -> None:
        self._books.dequeue(event.request)

    def _finished(self, event: ev.Finished) -> None:
        worker, since = self._books.granted.pop(event.request)
        resident = self._books.residents.get(worker)
        if resident is None:
            return
        record = self._books.record(resident.spec.name)
        if event.answered:
            resident.served += 1
            record.failures, record.reason = 0, ""
        if event.request in resident.busy:
            resident.busy.remove(event.request)
            resident.last_used = event.now
            record.mean_request = mean(record.mean_request, event.now - since)
            if not self._books.in_flight(resident.spec.name):
                record.quiet_since = event.now

    def _came_up(self, event: ev.CameUp) -> None:
        resident = self._books.residents[event.worker]
        resident.step(Step.CAME_UP)
        if resident.state is State.READY:
            resident.up_since = resident.last_used = event.now
            resident.deadline = None
            record = self._books.record(resident.spec.name)
            record.mean_load = mean(record.mean_load, event.now - resident.since)
            resident.told_slots = event.slots
            self._sample_soon(event.now)

    def _exited(self, event: ev.Exited) -> None:
        resident = self._books.residents.pop(event.worker)
        failed_start = resident.state is State.STARTING or resident.late
        failed_serving = resident.state is State.READY and not resident.served
        resident.step(Step.EXITED)
        if self._closing is None and (failed_start or failed_serving):
            record = self._books.record(resident.spec.name)
            record.failures += 1
            record.reason = resident.late or event.reason
            # One that came up and then died at once may have met with an accident: once.
            if failed_start or record.failures > 1:
                rest = COOL_DOWN * 2.0 ** (record.failures - 1)
                record.cool_until = event.now + min(rest, COOL_DOWN_MOST)
        if not self._books.residents:
            self._sample_at = math.inf
        elif resident.because == PRESSURE:
            self._sample_soon(event.now)

    def _sampled(self, event: ev.Sampled) -> None:
        for worker, held in event.held.items():
            resident = self._books.residents.get(worker)
            if resident is not None and resident.state is State.READY:
                record = self._books.record(resident.spec.name)
                # A mapped file is held page by page as it is read: the most ever seen is the need.
                record.measured = max(record.measured, held)

    def _reloaded(self, event: ev.Reloaded) -> None:
        before, self._catalog = self._catalog, event.catalog
        for model, old in before.models.items():
            if event.catalog.models.get(model) != old:
                self._books.records.pop(model, None)
        for resident in list(self._books.staying()):
            new = event.catalog.models.get(resident.spec.name)
            if new is not None and resident.spec.same_process(new):
                resident.spec = new
            elif resident.state is State.READY:
                resident.step(Step.DRAIN)
                resident.because = "its configuration changed"
            else:
                self._stop(resident, "its configuration changed", event.now)
        self._sample_at = math.inf
        if self._books.residents:
            self._sample_soon(event.now)

    def _unload_asked(self, event: ev.UnloadAsked) -> None:
        for resident in self._books.residents.values():
            asked = event.model is None or resident.spec.name == event.model
            if asked and resident.state is State.READY:
                resident.step(Step.DRAIN)
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

    # -- the settle pass -----------------------------------------------------------------------

    def _settle(self, now: float, pressed: bool) -> None:
        self._refuse_the_hopeless(now)
        self._let_go(now, pressed)
        yielding = self._place(now)
        self._grant(now, yielding)
        self._keep_deadlines(now)
        self._wish_to_wake(now)

    def _refuse_the_hopeless(self, now: float) -> None:
        for model in list(self._books.queues):
            refusal = self._hopeless(model, now)
            if refusal is None:
                continue
            why, message, retry_after = refusal
            for request in list(self._books.queues[model]):
                self._books.dequeue(request)
                self._orders.append(Refuse(request, why, message, retry_after))

    def _hopeless(self, model: str, now: float) -> tuple[Why, str, float] | None:
        """Why nobody who waits for this model can be served, or None."""
        served = self._books.serving(model) is not None
        if self._closing is not None and (now >= self._closing or not served):
            return Why.CLOSING, "swapd is shutting down", 5.0
        spec = self._catalog.models.get(model)
        if spec is None:
            return Why.UNKNOWN_MODEL, f"there is no model {model!r} any more", 0.0
        return None if served else self._cannot_start(spec, now)

    def _cannot_start(self, spec: ModelSpec, now: float) -> tuple[Why, str, float] | None:
        """Why a worker of this model can't be started however long one waits, or None."""
        record, need = self._books.records.get(spec.name), self._books.need(spec)
        if record is not None and record.cool_until > now:
            message = f"{spec.name!r} failed: {record.reason}"
            return Why.START_FAILED, message, record.cool_until - now
        if lack := missing(need, self._limits):
            return Why.TOO_LARGE, self._too_large(spec, lack), 0.0
        pinned = self._books.total(r for r in self._books.staying() if r.spec.pinned)
        if missing(pinned + need, self._limits):
            return Why.TOO_LARGE, f"pinned models leave no room for {spec.name!r}", 0.0
        return None

    def _too_large(self, spec: ModelSpec, lack: Room) -> str:
        need, budget = self._books.need(spec).bytes, self._limits.budget_bytes
        return (
            f"{spec.name!r} needs {need / 2**20:,.0f} MiB, {lack.bytes / 2**20:,.0f} MiB more than"
            f" the memory budget of {budget / 2**20:,.0f} MiB"
        )

    def _let_go(self, now: float, pressed: bool) -> None:
        """Stop whoever is not needed: unclaimed, drained, past its time, or over the limits."""
        for resident in list(self._books.residents.values()):
            because = self._dismissal(resident, now)
            if because:
                self._stop(resident, because, now)
        if pressed:
            victim = eviction.least_recently_used(candidates(self._books))
            if victim is not None:
                self._stop(self._books.residents[victim], PRESSURE, now)
        self._shrink(now)

    def _dismissal(self, resident: Resident, now: float) -> str:
        """Why this worker is to go, whatever the others do; empty: it may stay."""
        wanted = resident.spec.name in self._books.queues
        if resident.state is State.STARTING:
            return "" if wanted else "nobody waits for it any more"
        if resident.state is State.DRAINING:
            return "" if resident.busy else resident.because
        if not resident.idle or wanted:
            return ""
        if self._closing is not None:
            return "swapd is shutting down"
        if resident.ttl and now >= resident.last_used + resident.ttl:
            return f"idle for {resident.ttl:g} s"
        return ""

    def _shrink(self, now: float) -> None:
        """Stop idle workers while those that stay are over the limits.

        They can be: limits are lowered by a reload, needs grow by measurement.
        """
        while missing(self._books.total(self._books.staying()), self._limits):
            victim = eviction.least_recently_used(candidates(self._books))
            if victim is None:
                return
            self._stop(self._books.residents[victim], "over the memory limits", now)

    def _place(self, now: float) -> set[ev.WorkerId]:
        """Start what is wanted and fits, stop idle workers where room is short.

        Returns the workers that have to yield: busy ones whose room an older request needs.
        """
        made = plan(self._books, self._catalog, self._limits, now)
        self._turn_ends = made.again_at
        for worker, wanted in made.stop:
            self._stop(self._books.residents[worker], f"makes room for {wanted}", now)
        for spec in made.start:
            self._start(spec, now)
        return made.yielding

    def _grant(self, now: float, yielding: set[ev.WorkerId]) -> None:
        for resident in self._books.residents.values():
            queue = self._books.queues.get(resident.spec.name)
            if not queue or resident.state is not State.READY or resident.worker in yielding:
                continue
            for waiting in self._admissible(resident, queue):
                self._books.dequeue(waiting.request)
                self._give(waiting.request, resident, now)

    def _admissible(self, resident: Resident, queue: dict[int, Waiting]) -> list[Waiting]:
        """The head of the queue, as far as there are slots; takes the slots."""
        admitted: list[Waiting] = []
        for waiting in queue.values():
            if waiting.needs_slot:
                if resident.free_slots <= 0:
                    break
                resident.busy.add(waiting.request)
            admitted.append(waiting)
        return admitted

    def _keep_deadlines(self, now: float) -> None:
        for resident in self._books.residents.values():
            if resident.state is State.KILLED:
                continue
            spec = resident.spec
            if self._closing is not None and now >= self._closing:
                self._kill(resident, "swapd is shutting down")
            elif resident.deadline is None or now < resident.deadline:
                continue
            elif resident.state is State.STARTING:
                resident.late = f"it was not ready within {spec.start_timeout:g} s"
                self._kill(resident, resident.late)
            else:
                self._kill(resident, f"it did not end within {spec.stop_grace:g} s")

    def _wish_to_wake(self, now: float) -> None:
        times = [self._sample_at, self._turn_ends] if self._books.residents else []
        if self._closing is not None and now < self._closing and not self.at_rest:
            times.append(self._closing)
        for r in self._books.residents.values():
            if r.state is State.KILLED:
                continue
            if r.deadline is not None:
                times.append(r.deadline)
            elif r.idle and r.ttl:
                times.append(r.last_used + r.ttl)
        soonest = min(times, default=math.inf)
        wish = None if soonest == math.inf else soonest
        if wish != self._wake:
            self._wake = wish
            self._orders.append(WakeAt(wish))

    # -- small orders --------------------------------------------------------------------------

    def _give(self, request: ev.RequestId, resident: Resident, now: float) -> None:
        self._books.granted[request] = (resident.worker, now)
        self._orders.append(Grant(request, resident.worker))

    def _start(self, spec: ModelSpec, now: float) -> None:
        resident = self._books.admit(spec, now)
        self._orders.append(Start(resident.worker, spec))

    def _stop(self, resident: Resident, because: str, now: float) -> None:
        resident.step(Step.STOP)
        resident.because = because
        resident.deadline = now + resident.spec.stop_grace
        self._orders.append(Stop(resident.worker, because))

    def _kill(self, resident: Resident, because: str) -> None:
        resident.step(Step.KILL)
        resident.deadline = None
        self._orders.append(Kill(resident.worker, because))

    def _sample_soon(self, now: float) -> None:
        limits = self._limits
        if limits.threshold_percent or limits.budget_bytes:
            self._sample_at = now + limits.interval
            self._orders.append(TakeSample())

    # -- small questions -----------------------------------------------------------------------

    @property
    def _limits(self) -> Limits:
        return self._catalog.limits

    def _is_pressed(self, event: ev.Event) -> bool:
        """Whether this event is a look at the memory that found too much of it in use.

        One victim at a time: while one is still on its way out, the sample says nothing new.
        """
        threshold = self._limits.threshold_percent
        return (
            isinstance(event, ev.Sampled)
            and 0 < threshold < event.used_percent
            and all(r.because != PRESSURE for r in self._books.residents.values())
        )

    def _ready(self, model: str) -> Resident | None:
        resident = self._books.serving(model)
        return resident if resident is not None and resident.state is State.READY else None

    def _expected_wait(self, spec: ModelSpec, ahead: int) -> float:
        """Seconds until `ahead` requests and one more are through, from the measured mean."""
        usual = self._books.record(spec.name).mean_request or 1.0
        return max(1.0, usual * (ahead + 1) / spec.slots)
