"""Who goes when room is needed: pure functions over those who may go."""

from __future__ import annotations

from collections.abc import Iterable

from swapd.core.policy import Candidate, Key, Policy, reluctance
from swapd.core.room import Room


def first_to_go(policy: Policy, candidates: Iterable[Candidate[Key]]) -> Key | None:
    """The one not in use that is worth least by the byte, or None."""
    idle = [c for c in candidates if not c.in_use]
    return min(idle, key=reluctance(policy, Room(0, 1))).key if idle else None


def choose(
    policy: Policy, short: Room, candidates: Iterable[Candidate[Key]]
) -> tuple[Key, ...] | None:
    """Those that must go to make up for `short`; None when all of them would not do.

    Taken in order of reluctance; then those are spared, the most reluctant first, without whom
    it is enough as well.
    """
    chosen: list[Candidate[Key]] = []
    freed = Room()
    for candidate in sorted(candidates, key=reluctance(policy, short)):
        if not short - freed:
            break
        chosen.append(candidate)
        freed += Room(1, candidate.bytes)
    if short - freed:
        return None
    for candidate in reversed(list(chosen)):
        without = freed - Room(1, candidate.bytes)
        if not short - without:
            chosen.remove(candidate)
            freed = without
    return tuple(c.key for c in chosen)
