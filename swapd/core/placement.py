"""Where the room for wanted models comes from: a plan over the books, which it does not change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from swapd.core import eviction
from swapd.core.ledger import Ledger, Resident
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


def plan(books: Ledger, catalog: Catalog, limits: Limits) -> Plan:
    """Give each wanted model its room in turn, the one that has waited longest first.

    What cannot be had yet is reserved, so that nothing younger takes it meanwhile.
    """
    made = Plan()
    leaving: set[WorkerId] = set()
    taken, reserved = books.taken(), Room()
    for place, spec in wanted(books, catalog):
        need = books.need(spec)
        if not missing(taken + reserved + need, limits):
            made.start.append(spec)
            taken += need
            continue
        stay = books.total(r for r in books.staying() if r.worker not in leaving)
        started = books.total_need(made.start)
        short = missing(stay + started + reserved + need, limits)
        for worker in eviction.choose(short, candidates(books, place, leaving)):
            leaving.add(worker)
            if books.residents[worker].idle:
                made.stop.append((worker, spec.name))
            else:
                made.yielding.add(worker)
        reserved += need
    return made


def wanted(books: Ledger, catalog: Catalog) -> list[tuple[int, ModelSpec]]:
    """Models with a queue and no worker that serves it, with the place of their oldest request."""
    served = {r.spec.name for r in books.residents.values() if r.state in SERVING}
    wishes = [
        (next(iter(queue.values())).place, catalog.models[model])
        for model, queue in books.queues.items()
        if model not in served
    ]
    return sorted(wishes, key=lambda wish: wish[0])


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
