"""The scheduler: facts in, orders out.

Its rules:

1. An order counts the moment it is given; the books change here, not when the effect reports.
2. Every event ends in the same settle pass; nothing else gives orders. The pass looks at the
   models that something changed for and at the workers whose time has come, and gives the same
   orders as one that looked at all of them.
3. Every Arrived ends in exactly one of Refused, Left or Finished.
4. What depends on the queue is derived and never stored as a decision: a busy worker "yields" as
   long as an older request needs its room, and no longer. The plan for the room is kept only for
   as long as one made anew would be the same.
5. Time is a number in the event.

Models that wait for room get it by the rank of their first request: by arrival, brought forward
by priority. A worker whose room is wanted goes on serving for a turn (see `fairness`) and then
yields, and its model ranks behind those for whom it went. So a wait is bounded: for each model
before it at most a turn, the time of the requests that are running at its end, one stop and one
start; then within its queue (see `queue`) the requests of its own tenant before it, each with as
many tokens of every other tenant, and once for what each that comes back, or asks for less, is
ahead. Before the next request of its own tenant it waits for two minutes at most, where so many are
served in that time as there are tenants.

Making room and starting: what the plan says, as far as the machine has the memory in fact.

Workers whose configuration has changed: the new one is ready before the old one goes.

Where there is room for both. Else, or when the new one does not come up beside the old, the old
one drains first, as it would without this: what is configured counts, not what once worked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from swapd.domain import events as ev
from swapd.domain.commands import (
    CheckLiveness,
    Command,
    PrefetchFiles,
    QueryFreeMemory,
    RejectReason,
    SetTimer,
)
from swapd.domain.models import Catalog, ModelSpec
from swapd.domain.status import QueueEstimate, WorkerStatus
from swapd.scheduler import eviction
from swapd.scheduler.admission import CLOSING, Rejection, cannot_start, no_room, not_free
from swapd.scheduler.eviction import PressureLevel, pressure_level
from swapd.scheduler.groups import group_of
from swapd.scheduler.handlers import COOL_DOWN_MOST, PRESSURE, UNCLAIMED, Facts
from swapd.scheduler.lifecycle import WORKING, WorkerState
from swapd.scheduler.placement import PATIENCE, PAUSE, candidate, evictable, plan
from swapd.scheduler.queue import QueuedRequest
from swapd.scheduler.state import Capacity, WorkerRecord, missing


class Placing(Facts):
    """The part of the settle pass that gives wanted models their workers."""

    def _is_done(self, now: float) -> bool:
        """Whether nothing is left to be done of the plan, which would be the same if made anew,
        when no worker has changed."""
        made = self._plan
        return not (made.start or made.refused) and made.holds(self._books, now)

    def _place(self, now: float) -> set[str]:
        """Start what is wanted and fits, stop idle workers where room is short.

        Returns the models whose workers yielded and do no longer.
        """
        before, books = self._plan, self._books
        if not before.holds(books, now):
            self._plan = plan(books, self._catalog, now)
            books.horizon = self._plan.reached
        made = self._plan
        for worker, wanted in made.going.items():
            resident = books.residents[worker]
            if resident.idle:
                books.put_behind(resident.spec.name, wanted, now)
                self._stop(resident, f"makes room for {wanted}", now)
        for spec, short in made.refused:
            retry_after = max(1.0, min(self._agenda.soonest - now, COOL_DOWN_MOST))
            self._refuse_all(spec.name, no_room(spec, short, self._limits, retry_after))
        for spec in self._affordable(made.start, now):
            self._start(spec, now)
        self._read_ahead()
        if made is before:
            return set()
        released = before.going.keys() - made.going.keys()
        return {books.residents[w].spec.name for w in released if w in books.residents}

    def _read_ahead(self) -> None:
        """Have the next model's files read while those before it are in its place."""
        wanted = self._books.wanted
        coming = wanted[0][1] if wanted else ""
        if coming != self._ahead:
            self._ahead = coming
            if coming:
                self._orders.append(PrefetchFiles(self._catalog.models[coming]))

    def _affordable(self, wanted: list[ModelSpec], now: float) -> list[ModelSpec]:
        """Those of them, in turn, for which the memory is there; that is asked for first."""
        scarcity = self._scarcity
        if scarcity.since:
            scarcity.only({spec.name for spec in wanted})
        if not wanted or not self._limits.require_free_memory:
            return wanted
        if scarcity.free is None:
            if scarcity.ought_to_look(self._books.version, now):
                scarcity.looks(self._books.version)
                self._orders.append(QueryFreeMemory())
            return []
        free, found = scarcity.free, list[ModelSpec]()
        for resident in self._books.residents.values():
            if resident.is_coming:
                free -= self._books.need(resident.spec).bytes
        for spec in wanted:
            need = self._books.need(spec).bytes
            if need > free and not self._runs_alone(spec, need):
                self._make_free(spec, need, max(free, 0), now)
                break
            scarcity.fits(spec.name)
            free -= need
            found.append(spec)
        return found

    def _runs_alone(self, spec: ModelSpec, need: int) -> bool:
        """Whether it is one of which it is only known that it has to be alone, and it will be."""
        others = any(r.spec.name != spec.name for r in self._books.residents.values())
        return not others and 0 < self._limits.budget_bytes <= need

    def _make_free(self, spec: ModelSpec, need: int, free: int, now: float) -> None:
        """It is short of memory that other programs hold: idle workers go, or it waits."""
        books, scarcity = self._books, self._scarcity
        settled = WorkerState.READY, WorkerState.DRAINING
        if any(r.state not in settled for r in books.residents.values()):
            return  # What comes up or goes will be heard of.
        idle = [
            candidate(books, r, now)
            for r in evictable(books)
            if r.idle and r.up_since + r.spec.serving.min_residency <= now
        ]
        short = Capacity(0, need - free)
        victims = eviction.choose(self._policy, short, idle) if self._policy.evicts else None
        if victims:
            for victim in victims:
                self._stop(books.residents[victim], f"makes room for {spec.name}", now)
        elif now >= scarcity.waits(spec.name, now) + PATIENCE:
            scarcity.fits(spec.name)
            self._refuse_all(spec.name, not_free(spec, need, free))
            if books.wanted:
                scarcity.looks(books.version)
                self._orders.append(QueryFreeMemory())
        else:
            scarcity.look_at = now + PAUSE


class Succession(Placing):
    """The part of the settle pass that gives outdated workers their heirs."""

    def _succeed(self, now: float) -> None:
        """Start an heir beside each outdated worker, or let that one drain."""
        for worker in list(self._outdated):
            resident = self._books.residents.get(worker)
            spec = self._successor(resident) if resident is not None else None
            if resident is None or spec is None:
                del self._outdated[worker]
            elif not self._may_be_beside(spec):
                del self._outdated[worker]
                self._drain(resident)
            elif not self._limits.require_free_memory or self._scarcity.free is not None:
                del self._outdated[worker]
                self._start(spec, now, replacement=True)
            elif self._scarcity.ought_to_look(self._books.version, now):
                self._scarcity.looks(self._books.version)
                self._orders.append(QueryFreeMemory())

    def _successor(self, resident: WorkerRecord) -> ModelSpec | None:
        """What is to run in its place, unless it goes anyway, is right again or has an heir."""
        spec = self._catalog.models.get(resident.spec.name)
        if (
            spec is None
            or resident.state is not WorkerState.READY
            or resident.spec.same_process(spec)
        ):
            return None
        heirs = (r for r in self._books.of_model(spec.name) if r.state is WorkerState.STARTING)
        return None if any(heirs) else spec

    def _may_be_beside(self, spec: ModelSpec) -> bool:
        """Whether there is room for a second worker, as far as it is known, and nobody wants it.

        What a group says of its members may mean that one of them fills the machine.
        """
        books, need = self._books, self._books.need(spec)
        if self._closing is not None or books.wanted or group_of(spec.name, self._limits):
            return False
        if missing(books.taken() + need, self._limits):
            return False
        free = self._scarcity.free
        if not self._limits.require_free_memory or free is None:
            return True
        coming = sum(books.need(r.spec).bytes for r in books.residents.values() if r.is_coming)
        return coming + need.bytes <= free


LATE = 1.0
"""Seconds by which a look comes late when it is swapd itself that stood still."""


class Scheduler(Succession):
    """Decides for all models at once. `handle` is its only door for facts.

    What was learned of models at another time it may be given at the start.
    """

    def handle(self, event: ev.Event) -> list[Command]:
        """Take a fact in; return what is to be done, in order."""
        self._handlers[type(event)](event)
        looked = type(event) is ev.MemorySampled
        self._settle(event.now, self._pressure(event) if looked else PressureLevel.NONE)
        self._scarcity.free = None
        orders, self._orders = self._orders, []
        return orders

    # -- questions from outside --------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        return self._catalog

    @property
    def tracks_fingerprints(self) -> bool:
        """Whether to tell the fingerprints of requests that arrive."""
        return bool(self._suspects)

    @property
    def at_rest(self) -> bool:
        """Nobody waits, nothing runs."""
        books = self._books
        return not (books.residents or books.waiting or books.granted)

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
                expires_at=self._lasts_until(r) if self._lasts_until(r) < math.inf else None,
                bytes=self._books.need(r.spec).bytes,
            )
            for r in self._books.residents.values()
        ]

    def waiting(self, model: str) -> int:
        """How many requests wait for this model."""
        return len(self._books.queues.get(model, ()))

    def queue_estimate(self, model: str, now: float) -> QueueEstimate:
        """What somebody may expect who waits for this model."""
        resident = self._books.serving(model)
        coming = resident is not None and resident.state is WorkerState.STARTING
        return QueueEstimate(
            waiting=self.waiting(model),
            ready=resident is not None and resident.state is WorkerState.READY,
            loading_for=now - resident.since if resident is not None and coming else None,
            usual_load=self._books.load_seconds(model),
        )

    def __repr__(self) -> str:
        closing = "" if self._closing is None else f" closing by {self._closing:g}"
        return f"<Scheduler {self._books!r}{closing} wake {self._wake}>"

    # -- the settle pass -----------------------------------------------------------------------

    def _settle(self, now: float, pressure: PressureLevel) -> None:
        if self._outdated:
            self._succeed(now)
        models = self._concerned(now)
        if models:
            self._refuse_the_hopeless(models, now)
            self._dismiss(models, now)
        if pressure is not PressureLevel.NONE:
            self._relieve(pressure, now)
        books = self._books
        if self._plan.version != books.version:
            self._shrink(now)
        if models or books.touched or not self._is_done(now):
            models |= self._place(now)
            self._grant(models, now)
            self._keep_deadlines(models | books.touched, now)
        self._wish_to_wake(now)

    def _concerned(self, now: float) -> set[str]:
        """The models for which this pass may have something to do."""
        books = self._books
        models, books.touched = books.touched, set()
        if self._look_at_all or self._closing is not None:
            self._look_at_all = False
            return books.models()
        if self._agenda.soonest <= now:
            for worker in self._agenda.due(now):
                models.add(books.residents[worker].spec.name)
        return models

    def _refuse_the_hopeless(self, models: set[str], now: float) -> None:
        queued = self._books.queues.keys() & models
        for model in sorted(queued):
            verdict = self._hopeless(model, now)
            if verdict is not None:
                self._refuse_all(model, verdict)

    def _hopeless(self, model: str, now: float) -> Rejection | None:
        """Why nobody who waits for this model can be served, or None."""
        served = self._books.serving(model) is not None
        if self._closing is not None and (now >= self._closing or not served):
            return CLOSING
        spec = self._catalog.models.get(model)
        if spec is None:
            return Rejection(RejectReason.UNKNOWN_MODEL, f"there is no model {model!r} any more")
        return None if served else cannot_start(self._books, self._catalog, spec, now)

    def _dismiss(self, models: set[str], now: float) -> None:
        """Stop whoever is not needed: unclaimed, drained or past its time."""
        for resident in self._workers_of(models):
            because = self._dismissal(resident, now)
            if because:
                self._stop(resident, because, now)

    def _relieve(self, pressure: PressureLevel, now: float) -> None:
        """Stop one worker because the memory is pressed."""
        victim = self._first_to_go(now, pressure is PressureLevel.BUSY)
        if victim is not None:
            self._stop(victim, PRESSURE, now)

    def _dismissal(self, resident: WorkerRecord, now: float) -> str:
        """Why this worker is to go, whatever the others do; empty: it may stay."""
        wanted = resident.spec.name in self._books.queues
        if resident.state is WorkerState.STARTING:
            claimed = wanted or (resident.replacement and self._closing is None)
            return "" if claimed else UNCLAIMED
        if resident.state is WorkerState.DRAINING:
            return "" if resident.busy else resident.reason
        if not resident.idle or wanted:
            return ""
        if self._closing is not None:
            return "swapd is shutting down"
        if now >= self._lasts_until(resident):
            return f"idle for {resident.lasts(self._policy.uses_ttl):g} s"
        return ""

    def _shrink(self, now: float) -> None:
        """Stop idle workers while those that stay are over the limits.

        They can be: limits are lowered by a reload, needs grow by measurement.
        """
        while missing(self._books.stays(), self._limits):
            victim = self._first_to_go(now)
            if victim is None:
                return
            self._stop(victim, "over the memory limits", now)

    def _grant(self, models: Iterable[str], now: float) -> None:
        # A grant leaves nothing for the next pass to look at.
        touched = set(self._books.touched)
        for model in sorted(models):
            resident = self._books.serving(model)
            if resident is None or resident.state is not WorkerState.READY:
                continue
            if resident.worker not in self._plan.going:
                while waiting := self._admissible(resident, now):
                    self._give(waiting, resident, now)
        self._books.touched = touched

    def _admissible(self, resident: WorkerRecord, now: float) -> QueuedRequest | None:
        """The next that waits for this worker's model, if the worker can take it."""
        queue, free = self._books.queues.get(resident.spec.name), resident.free_slots > 0
        if queue is None or not (free or queue.guests):
            return None
        waiting = queue.next(resident.slots, now)
        if waiting.alone and resident.busy:
            return None
        return waiting if free or not waiting.needs_slot else None

    def _keep_deadlines(self, models: set[str], now: float) -> None:
        for resident in self._workers_of(models):
            self._keep_deadline(resident, now)
            self._agenda.set(resident.worker, self._due(resident))

    def _keep_deadline(self, resident: WorkerRecord, now: float) -> None:
        spec = resident.spec
        if now >= resident.look_at:
            self._look(resident, now)
        if resident.state is WorkerState.KILLED:
            return
        if self._closing is not None and now >= self._closing:
            self._kill(resident, "swapd is shutting down")
        elif resident.deadline is None or now < resident.deadline:
            return
        elif resident.state is WorkerState.STARTING:
            resident.late = f"it was not ready within {spec.serving.start_timeout:g} s"
            self._kill(resident, resident.late)
        else:
            self._kill(resident, f"it did not end within {spec.serving.stop_grace:g} s")

    def _look(self, resident: WorkerRecord, now: float) -> None:
        """Have somebody look whether a worker that has something to do does it."""
        late, resident.look_at = now > resident.look_at + LATE, math.inf
        if not resident.busy or resident.state not in WORKING:
            return
        if late:
            # Then swapd itself stood still, perhaps with the whole machine.
            resident.last_progress = now
            self._watch(resident, now)
        else:
            self._orders.append(CheckLiveness(resident.worker))

    def _wish_to_wake(self, now: float) -> None:
        soonest = min(self._agenda.soonest, self._scarcity.look_at)
        if self._books.residents:
            soonest = min(soonest, self._sample_at, self._plan.again_at)
        if self._closing is not None and now < self._closing and not self.at_rest:
            soonest = min(soonest, self._closing)
        wish = None if soonest == math.inf else soonest
        if wish != self._wake:
            self._wake = wish
            self._orders.append(SetTimer(wish))

    def _pressure(self, event: ev.Event) -> PressureLevel:
        """Who may have to go for what this event tells of the memory.

        One victim at a time: while one is still on its way out, a sample says nothing new.
        """
        pressure = pressure_level(event, self._limits)
        if pressure is PressureLevel.NONE:
            return pressure
        leaving = any(r.reason == PRESSURE for r in self._books.residents.values())
        return PressureLevel.NONE if leaving else pressure
