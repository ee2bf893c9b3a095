"""Who goes when room is needed: pure functions over those who may go."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Generic

from swapd.core.policy import Candidate, Key, Policy, reluctance
from swapd.core.room import Room

STEPS = 500
"""How many sets are looked at in the search for the cheapest, at most."""


def first_to_go(
    policy: Policy, candidates: Iterable[Candidate[Key]], in_use_too: bool = False
) -> Key | None:
    """The one not in use that is worth least by the byte; one in use only if that may be."""
    idle = [c for c in candidates if in_use_too or not c.in_use]
    return min(idle, key=reluctance(policy, Room(0, 1))).key if idle else None


def choose(
    policy: Policy, short: Room, candidates: Collection[Candidate[Key]]
) -> tuple[Key, ...] | None:
    """Those that must go to make up for `short`; None when all of them would not do.

    Taken in order of reluctance; then those are spared, the most reluctant first, without whom
    it is enough as well. Where worths add up, a set of less worth is looked for then.
    """
    if not short:
        return ()
    if not candidates:
        return None
    order = sorted(candidates, key=reluctance(policy, short))
    chosen: list[Candidate[Key]] = []
    freed = Room()
    for candidate in order:
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
    if policy.adds_up and chosen and not any(c.in_use for c in chosen):
        chosen = _Search(policy, short, [c for c in order if not c.in_use], chosen).best
    return tuple(c.key for c in chosen)


class _Search(Generic[Key]):
    """For the set of least worth that makes up for what is short, from a set that does."""

    def __init__(
        self,
        policy: Policy,
        short: Room,
        idle: list[Candidate[Key]],
        known: list[Candidate[Key]],
    ) -> None:
        self._idle: list[tuple[Candidate[Key], float]] = [(c, policy.worth(c, False)) for c in idle]
        self._left = STEPS
        self.best: list[Candidate[Key]] = known
        self._worth = sum(policy.worth(c, False) for c in known)
        self._go_on(0, short.workers, short.bytes, 0.0, [])

    def _go_on(
        self, at: int, workers: int, size: int, worth: float, chosen: list[Candidate[Key]]
    ) -> None:
        """Try all sets that begin with those chosen and go on with some of the rest."""
        self._left -= 1
        if worth >= self._worth or self._left < 0:
            return
        if workers <= 0 and size <= 0:
            self.best, self._worth = list(chosen), worth
        elif at < len(self._idle):
            candidate, more = self._idle[at]
            chosen.append(candidate)
            self._go_on(at + 1, workers - 1, size - candidate.bytes, worth + more, chosen)
            chosen.pop()
            self._go_on(at + 1, workers, size, worth, chosen)
