"""Who goes when room is needed: pure functions over those who may go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from swapd.core.room import Room
from swapd.words.events import WorkerId


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that may be asked to go."""

    worker: WorkerId
    bytes: int
    busy: int
    """Requests it is serving."""
    waited_for: bool
    """Whether requests wait for its model (younger ones than the request that needs the room)."""
    last_used: float


def _reluctance(c: Candidate) -> tuple[bool, bool, float, WorkerId]:
    """Idle before busy, unwanted before wanted, then least recently used."""
    return (c.busy > 0, c.waited_for, c.last_used, c.worker)


def least_recently_used(candidates: Iterable[Candidate]) -> WorkerId | None:
    """The one idle and unwanted candidate whose last request ended first, or None."""
    idle = [c for c in candidates if not c.busy and not c.waited_for]
    return min(idle, key=_reluctance).worker if idle else None


def choose(short: Room, candidates: Iterable[Candidate]) -> tuple[WorkerId, ...]:
    """The workers that must go to make up for `short`; empty when all of them would not do.

    Taken in order of reluctance; then those are spared, the most reluctant first, without whom
    it is enough as well.
    """
    chosen: list[Candidate] = []
    freed = Room()
    for candidate in sorted(candidates, key=_reluctance):
        if not short - freed:
            break
        chosen.append(candidate)
        freed += Room(1, candidate.bytes)
    if short - freed:
        return ()
    for candidate in reversed(list(chosen)):
        without = freed - Room(1, candidate.bytes)
        if not short - without:
            chosen.remove(candidate)
            freed = without
    return tuple(c.worker for c in chosen)
