"""Where the room for wanted models comes from: a plan over the books, which it does not change.

Memory that the books have and the machine has not: other programs hold it.

A model that would fit by the books is started when as much as it needs is free in fact. Else it
waits: for workers that are on their way out, then for idle ones that are sent after them, then for
the other programs, which is the one thing that has to be looked at again and again. Not for ever.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from swapd.domain.events import WorkerId
from swapd.domain.models import Catalog, Limits, ModelSpec
from swapd.scheduler import eviction
from swapd.scheduler.eviction import POLICIES, EvictionCandidate
from swapd.scheduler.groups import is_spared, must_not_coexist
from swapd.scheduler.lifecycle import LEAVING, WorkerState
from swapd.scheduler.queue import Rank
from swapd.scheduler.state import NEVER, Capacity, SchedulerState, WorkerRecord, missing
from swapd.scheduler.turns import keeps_place_until


@dataclass(slots=True)
class PlacementPlan:
    """What is to happen so that wanted models get their room."""

    version: int
    """Of the books that it was made from."""
    start: list[ModelSpec] = field(default_factory=list)
    """Models that fit now."""
    going: dict[WorkerId, str] = field(default_factory=dict)
    """Workers that make room, each with the model it makes room for. The busy ones among them
    yield: they take no new grants for as long as the room they hold is needed."""
    refused: list[tuple[ModelSpec, Capacity]] = field(default_factory=list)
    """Models for which there is no room and nobody goes, and what is missing."""
    reached: Rank = NEVER
    """The rank before which the plan ended; who comes after it plays no part."""
    again_at: float = math.inf
    """When the first turn ends that somebody waits for."""
    holds_until: float = math.inf
    """When a plan from the same books may come out differently."""

    def holds(self, books: SchedulerState, now: float) -> bool:
        """Whether a plan made now would be the same: nothing it is made from has changed."""
        return self.version == books.version and now < self.holds_until


@dataclass(slots=True)
class _Room:
    """How far the plan has given the room away. What is reserved is in both amounts."""

    taken: Capacity
    """By all workers alive."""
    stays: Capacity
    """By those that nobody has asked to go, the plan included."""
    held_for: list[str] = field(default_factory=list)
    """Models that others must part from already: started, or next for their place."""


def plan(books: SchedulerState, catalog: Catalog, now: float) -> PlacementPlan:
    """Give each wanted model its room in turn, the one of first rank first.

    What cannot be had yet is reserved, so that nothing younger takes it meanwhile. When all who
    may go are not enough for one, those after it get nothing either, and the plan ends.
    """
    made = PlacementPlan(books.version)
    if not books.wanted:
        return made
    room, limits = _Room(books.taken(), books.stays()), catalog.limits
    for rank, model in books.wanted:
        spec = catalog.models[model]
        need = books.need(spec)
        parting = _parting(books, limits, spec) if limits.groups else []
        fits = not missing(room.taken + need, limits)
        room.taken += need
        room.stays += need
        if fits and not parting and not (limits.groups and _held(room, spec, limits)):
            made.start.append(spec)
        elif not _make_room(made, room, books, limits, (rank, spec, parting), now) and not fits:
            made.reached = (rank[0], rank[1] + 1)
            break
        room.held_for.append(model)
    return made


def _parting(books: SchedulerState, limits: Limits, spec: ModelSpec) -> list[WorkerRecord]:
    """Workers alive that have to be gone before one of `spec` is started."""
    return [
        r
        for r in books.residents.values()
        if must_not_coexist(spec.name, r.spec.name, limits) and not r.spec.serving.pinned
    ]


def _held(room: _Room, spec: ModelSpec, limits: Limits) -> bool:
    """Whether one before it, started or waiting for its place, can't be together with it."""
    return any(
        must_not_coexist(spec.name, other, limits) or must_not_coexist(other, spec.name, limits)
        for other in room.held_for
    )


def _make_room(
    made: PlacementPlan,
    room: _Room,
    books: SchedulerState,
    limits: Limits,
    wish: tuple[Rank, ModelSpec, list[WorkerRecord]],
    now: float,
) -> bool:
    """Name who goes for a model, whose room is reserved; False when they are not enough."""
    rank, spec, alive = wish
    policy = POLICIES[limits.policy]
    parting = [r for r in alive if r.state not in LEAVING and r.worker not in made.going]
    short = missing(room.stays, limits)
    if not short and not parting:
        # Who is on the way out leaves enough.
        return True
    if not policy.evicts:
        made.refused.append((spec, short))
        need = books.need(spec)
        room.taken, room.stays = room.taken - need, room.stays - need
        return True
    may_go, kept = _split(books, limits, rank, spec, made, now)
    must = {r.worker for r in parting}
    forced = [c for c in may_go if c.key in must]
    chosen: tuple[WorkerId, ...] | None = None
    if len(forced) == len(must):
        if forced:
            may_go = [c for c in may_go if c.key not in must]
            short -= sum((Capacity(1, c.bytes) for c in forced), Capacity())
        chosen = eviction.choose(policy, short, may_go)
    if kept:
        made.holds_until = min(made.holds_until, *kept)
    if chosen is None:
        if kept:
            made.again_at = min(made.again_at, *kept)
        return False
    for worker in (*(c.key for c in forced), *chosen):
        made.going[worker] = spec.name
        room.stays -= books.need(books.residents[worker].spec)
    return True


def _split(
    books: SchedulerState,
    limits: Limits,
    rank: Rank,
    spec: ModelSpec,
    made: PlacementPlan,
    now: float,
) -> tuple[list[EvictionCandidate[WorkerId]], list[float]]:
    """Who may be asked to make room now, and the times at which others will have to."""
    may_go: list[EvictionCandidate[WorkerId]] = []
    kept: list[float] = []
    for resident in evictable(books):
        if resident.worker in made.going:
            continue
        if limits.groups and is_spared(spec.name, resident.spec.name, limits):
            continue
        until = keeps_place_until(books, resident, spec, rank, limits)
        if until <= now:
            may_go.append(candidate(books, resident, now))
        else:
            kept.append(until)
    return may_go, kept


def evictable(books: SchedulerState) -> list[WorkerRecord]:
    """Workers that may be asked to go: ready ones that are not pinned."""
    return [
        r
        for r in books.residents.values()
        if r.state is WorkerState.READY and not r.spec.serving.pinned
    ]


def candidate(books: SchedulerState, r: WorkerRecord, now: float) -> EvictionCandidate[WorkerId]:
    """What a policy sees of a worker.

    Of one in use only what stays the same while it is: a busy worker that was once chosen to
    yield is to finish and go, and not to be passed over for what it finishes meanwhile.
    """
    name = r.spec.name
    record, in_use = books.record(name), bool(r.busy) or name in books.queues
    return EvictionCandidate(
        key=r.worker,
        bytes=books.size(r.spec),
        in_use=in_use,
        last_used=r.up_since if in_use else r.last_used,
        uses=0 if in_use else record.uses,
        back=record.mean_load or 0.0,
        likely=books.forecast.share(record.demand, now),
        weight=r.spec.serving.weight,
    )


PATIENCE = 10.0
"""Seconds for which a model waits for memory that other programs hold."""
PAUSE = 0.5
"""Seconds from one look at the free memory to the next."""


@dataclass(slots=True)
class MemoryWaiters:
    """Who waits for memory in fact, and when to look again."""

    since: dict[str, float] = field(default_factory=dict)
    look_at: float = math.inf
    """When to look again though nothing was heard."""
    seen_at: int = -1
    """Version of the books at the last look."""
    free: int | None = None
    """Bytes, while the fact that tells them is being handled."""

    def ought_to_look(self, version: int, now: float) -> bool:
        """Whether a look may find something else than the last one did."""
        return version != self.seen_at or now >= self.look_at

    def looks(self, version: int) -> None:
        """A look is ordered."""
        self.seen_at, self.look_at = version, math.inf

    def waits(self, model: str, now: float) -> float:
        """It is found short; since when it has been."""
        return self.since.setdefault(model, now)

    def fits(self, model: str) -> None:
        """It waits no longer."""
        self.since.pop(model, None)

    def only(self, models: Collection[str]) -> None:
        """Nobody but these can be waiting."""
        self.since = {model: since for model, since in self.since.items() if model in models}
        if not self.since:
            self.look_at = math.inf
