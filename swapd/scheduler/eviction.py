"""Who goes when room is needed: pure functions over those who may go.

Who is worth keeping when room is needed: policies over anything that holds room.

A policy sees candidates and not what they stand for, so that one table serves workers in memory
and files on a disk alike. It says three things: whether anybody goes to make room for another,
whether idleness alone ends anybody, and in which order they go.

What a look at the memory asks for: pure questions about one sample.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Generic, TypeVar

from swapd.domain import events as ev
from swapd.domain.models import Limits
from swapd.scheduler.state import Capacity

Key = TypeVar("Key", int, str)


@dataclass(slots=True)
class EvictionCandidate(Generic[Key]):
    """Something that holds room and may be asked to give it up."""

    key: Key
    bytes: int
    in_use: bool
    """Serves somebody, or is waited for: goes after all that are not."""
    last_used: float
    uses: int = 0
    """How often it was asked for, ever."""
    back: float = 0.0
    """Seconds that it takes to bring it back."""
    likely: float = 0.0
    """How likely it is what is asked for next."""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class EvictionPolicy:
    """What decides who goes."""

    name: str
    evicts: bool
    """Whether anybody goes for want of room; else who finds none is refused."""
    uses_ttl: bool
    """Whether idleness beyond the time to live ends anybody."""
    additive: bool
    """Whether the worth of several is the sum of theirs."""
    worth: Callable[[EvictionCandidate[int] | EvictionCandidate[str], bool], float]
    """Who has least goes first; by the byte (True), or as it is."""


def _recency(c: EvictionCandidate[int] | EvictionCandidate[str], _: bool) -> float:
    return c.last_used


def _frequency(c: EvictionCandidate[int] | EvictionCandidate[str], _: bool) -> float:
    return c.uses


def _cost(c: EvictionCandidate[int] | EvictionCandidate[str], by_bytes: bool) -> float:
    """Seconds of loading that keeping it is likely to save, for each request and byte.

    What is in use is wanted now, all of it alike: what it takes to bring back decides.
    """
    saved = c.weight * c.back * (1.0 if c.in_use else c.likely)
    return saved / max(c.bytes, 1) if by_bytes else saved


POLICIES = MappingProxyType(
    {
        policy.name: policy
        for policy in (
            EvictionPolicy("cost", True, True, True, _cost),
            EvictionPolicy("lru", True, False, False, _recency),
            EvictionPolicy("lru-ttl", True, True, False, _recency),
            EvictionPolicy("lfu", True, False, False, _frequency),
            EvictionPolicy("ttl", False, True, False, _recency),
            EvictionPolicy("no-evict", False, False, False, _recency),
        )
    }
)


def eviction_cost(
    policy: EvictionPolicy, short: Capacity
) -> Callable[[EvictionCandidate[Key]], tuple[bool, float, float, Key]]:
    """What candidates are sorted by when so much room is short; the first goes first."""
    by_bytes = short.bytes > 0

    def key(c: EvictionCandidate[Key]) -> tuple[bool, float, float, Key]:
        return (c.in_use, policy.worth(c, by_bytes), c.last_used, c.key)

    return key


STEPS = 500
"""How many sets are looked at in the search for the cheapest, at most."""


def select_victim(
    policy: EvictionPolicy, candidates: Iterable[EvictionCandidate[Key]], in_use_too: bool = False
) -> Key | None:
    """The one not in use that is worth least by the byte; one in use only if that may be."""
    idle = [c for c in candidates if in_use_too or not c.in_use]
    return min(idle, key=eviction_cost(policy, Capacity(0, 1))).key if idle else None


def choose(
    policy: EvictionPolicy, short: Capacity, candidates: Collection[EvictionCandidate[Key]]
) -> tuple[Key, ...] | None:
    """Those that must go to make up for `short`; None when all of them would not do.

    Taken in order of reluctance; then those are spared, the most reluctant first, without whom
    it is enough as well. Where worths add up, a set of less worth is looked for then.
    """
    if not short:
        return ()
    if not candidates:
        return None
    order = sorted(candidates, key=eviction_cost(policy, short))
    chosen: list[EvictionCandidate[Key]] = []
    freed = Capacity()
    for candidate in order:
        if not short - freed:
            break
        chosen.append(candidate)
        freed += Capacity(1, candidate.bytes)
    if short - freed:
        return None
    for candidate in reversed(list(chosen)):
        without = freed - Capacity(1, candidate.bytes)
        if not short - without:
            chosen.remove(candidate)
            freed = without
    if policy.additive and chosen and not any(c.in_use for c in chosen):
        chosen = _Search(policy, short, [c for c in order if not c.in_use], chosen).best
    return tuple(c.key for c in chosen)


class _Search(Generic[Key]):
    """For the set of least worth that makes up for what is short, from a set that does."""

    def __init__(
        self,
        policy: EvictionPolicy,
        short: Capacity,
        idle: list[EvictionCandidate[Key]],
        known: list[EvictionCandidate[Key]],
    ) -> None:
        self._idle: list[tuple[EvictionCandidate[Key], float]] = [
            (c, policy.worth(c, False)) for c in idle
        ]
        self._left = STEPS
        self.best: list[EvictionCandidate[Key]] = known
        self._worth = sum(policy.worth(c, False) for c in known)
        self._go_on(0, short.workers, short.bytes, 0.0, [])

    def _go_on(
        self, at: int, workers: int, size: int, worth: float, chosen: list[EvictionCandidate[Key]]
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


class PressureLevel(Enum):
    """Who may have to go for it."""

    NONE = 0
    IDLE = 1
    BUSY = 2
    """A busy worker, when no idle one is left."""


def pressure_level(event: ev.Event, limits: Limits) -> PressureLevel:
    """How much the memory is pressed, if this event is a look at it."""
    if not isinstance(event, ev.MemorySampled):
        return PressureLevel.NONE
    if 0 < limits.critical_percent < event.used_percent:
        return PressureLevel.BUSY
    full = 0 < limits.threshold_percent < event.used_percent
    stalls = (
        limits.threshold_percent > 0 and 0 < limits.psi_threshold_percent < event.pressure_percent
    )
    return PressureLevel.IDLE if full or stalls else PressureLevel.NONE
