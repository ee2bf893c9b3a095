"""Where the room for wanted models comes from: a plan over the books, which it does not change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from swapd.core import eviction
from swapd.core.fairness import keeps_place_until
from swapd.core.ledger import Ledger, Resident, Waiting
from swapd.core.lifecycle import SERVING, State
from swapd.core.room import Room, missing
from swapd.words.catalog import Catalog, Limits, ModelSpec
from swapd.words.events import WorkerId


@dataclass(slots=True)
class Plan:
    """What is to happen so that wanted models get their room."""

    start: list[ModelSpec] = field(default_factory=list)
    """Models that fit now."""
    stop: list[tuple[WorkerId, str]] = field(default_factory=list)
    """Idle workers that make room, each with the model it makes room for."""
    yielding: set[WorkerId] = field(default_factory=set)
    """Busy workers that take no new grants until the room they hold is no longer needed."""
    again_at: float = math.inf
    """When the first turn ends that somebody waits for."""


def plan(books: Ledger, catalog: Catalog, limits: Limits, now: float) -> Plan:
    """Give each wanted model its room in turn, the one that has waited longest first.

    What cannot be had yet is reserved, so that nothing younger takes it meanwhile.
    """
    made = Plan()
    leaving: set[WorkerId] = set()
    taken, reserved = books.taken(), Room()
    for head, spec in wanted(books, catalog):
        need = books.need(spec)
        if not missing(taken + reserved + need, limits):
            made.start.append(spec)
            taken += need
            continue
        stay = books.total(r for r in books.staying() if r.worker not in leaving)
        started = books.total_need(made.start)
        short = missing(stay + started + reserved + need, limits)
        may_go, kept = _split(books, limits, spec, head, now, leaving)
        chosen = eviction.choose(short, may_go)
        if short and not chosen:
            made.again_at = min(made.again_at, min(kept, default=math.inf))
        for worker in chosen:
            leaving.add(worker)
            if books.residents[worker].idle:
                made.stop.append((worker, spec.name))
            else:
                made.yielding.add(worker)
        reserved += need
    return made


def _split(
    books: Ledger,
    limits: Limits,
    spec: ModelSpec,
    head: Waiting,
    now: float,
    leaving: set[WorkerId],
) -> tuple[list[eviction.Candidate], list[float]]:
    """Who may be asked to make room now, and the times at which others will have to."""
    may_go, kept = [], []
    for candidate in candidates(books, head.place, leaving):
        resident = books.residents[candidate.worker]
        until = keeps_place_until(books, resident, spec, head.since, limits)
        if until <= now:
            may_go.append(candidate)
        else:
            kept.append(until)
    return may_go, kept


def wanted(books: Ledger, catalog: Catalog) -> list[tuple[Waiting, ModelSpec]]:
    """Models with a queue and no worker that serves it, each with its oldest request."""
    served = {r.spec.name for r in books.residents.values() if r.state in SERVING}
    wishes = [
        (next(iter(queue.values())), catalog.models[model])
        for model, queue in books.queues.items()
        if model not in served
    ]
    return sorted(wishes, key=lambda wish: wish[0].place)


def candidates(
    books: Ledger, place: float = math.inf, leaving: Iterable[WorkerId] = ()
) -> Iterator[eviction.Candidate]:
    """Ready workers for which nobody older than `place` waits.

    Without the pinned ones, and without those that are leaving already.
    """
    for r in books.residents.values():
        if r.state is State.READY and not r.spec.pinned and r.worker not in leaving:
            oldest = books.oldest_place(r.spec.name)
            if oldest is None or oldest > place:
                yield _candidate(books, r, oldest is not None)


def _candidate(books: Ledger, r: Resident, waited_for: bool) -> eviction.Candidate:
    return eviction.Candidate(
        r.worker, books.need(r.spec).bytes, len(r.busy), waited_for, r.last_used
    )
