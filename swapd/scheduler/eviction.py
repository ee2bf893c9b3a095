"""Eviction policies, the choice of victims, and levels of memory pressure: pure functions.

A policy compares candidates, which stand for workers in memory and files on a disk alike. It
decides three things: if candidates are evicted for capacity, if they expire by idleness alone,
and in which order they are evicted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Generic, TypeVar

from swapd.domain import events as ev
from swapd.domain.models import Limits
from swapd.scheduler.records import Capacity

Key = TypeVar("Key", int, str)


@dataclass(slots=True)
class EvictionCandidate(Generic[Key]):
    """A holder of capacity that may be evicted."""

    key: Key
    bytes: int
    in_use: bool
    """True if it serves or is waited for: evicted after all that are not."""
    last_used: float
    uses: int = 0
    """Requests for it so far."""
    load_seconds: float = 0.0
    """Seconds to load it again."""
    next_use_probability: float = 0.0
    """Probability that the next request is for it."""
    weight: float = 1.0
    """Factor on its value, as configured."""


@dataclass(frozen=True, slots=True)
class EvictionPolicy:
    """A rule for the choice of victims."""

    name: str
    evicts: bool
    """True if candidates are evicted for capacity; else requests without it are rejected."""
    uses_ttl: bool
    """True if idleness beyond the TTL ends a candidate."""
    additive: bool
    """True if the value of a set is the sum of its members' values."""
    value: Callable[[EvictionCandidate[int] | EvictionCandidate[str], bool], float]
    """Value of keeping a candidate, by the byte (True) or in all; the least is evicted first."""


def _recency(c: EvictionCandidate[int] | EvictionCandidate[str], _: bool) -> float:
    return c.last_used


def _frequency(c: EvictionCandidate[int] | EvictionCandidate[str], _: bool) -> float:
    return c.uses


def _cost(c: EvictionCandidate[int] | EvictionCandidate[str], by_bytes: bool) -> float:
    """Return the expected seconds of loading that keeping it saves, for each request and byte.

    Candidates in use are all wanted now: the cost of loading them again decides.
    """
    saved = c.weight * c.load_seconds * (1.0 if c.in_use else c.next_use_probability)
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
    """Return the sort key of candidates when `short` is missing; the first is evicted first."""
    by_bytes = short.bytes > 0

    def key(c: EvictionCandidate[Key]) -> tuple[bool, float, float, Key]:
        return (c.in_use, policy.value(c, by_bytes), c.last_used, c.key)

    return key


STEPS = 500
"""Maximum number of sets that the search for the cheapest visits."""


def select_victim(
    policy: EvictionPolicy, candidates: Iterable[EvictionCandidate[Key]], in_use_too: bool = False
) -> Key | None:
    """Return the candidate not in use of least value by the byte, else one in use if allowed."""
    idle = [c for c in candidates if in_use_too or not c.in_use]
    return min(idle, key=eviction_cost(policy, Capacity(0, 1))).key if idle else None


def choose(
    policy: EvictionPolicy, short: Capacity, candidates: Collection[EvictionCandidate[Key]]
) -> tuple[Key, ...] | None:
    """Return the candidates to evict so that `short` is free; None if all are not enough."""
    if not short:
        return ()
    if not candidates:
        return None
    # 1. Take candidates by their eviction cost, the least first, until it is enough.
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
    # 2. Spare those without which it is enough as well, the most valuable first.
    for candidate in reversed(list(chosen)):
        without = freed - Capacity(1, candidate.bytes)
        if not short - without:
            chosen.remove(candidate)
            freed = without
    # 3. Where values add up, search for a set of less value.
    if policy.additive and chosen and not any(c.in_use for c in chosen):
        chosen = _Search(policy, short, [c for c in order if not c.in_use], chosen).best
    return tuple(c.key for c in chosen)


class _Search(Generic[Key]):
    """Branch-and-bound search for the set of least value that is enough, from a known one."""

    def __init__(
        self,
        policy: EvictionPolicy,
        short: Capacity,
        idle: list[EvictionCandidate[Key]],
        known: list[EvictionCandidate[Key]],
    ) -> None:
        self._idle: list[tuple[EvictionCandidate[Key], float]] = [
            (c, policy.value(c, False)) for c in idle
        ]
        self._left = STEPS
        self.best: list[EvictionCandidate[Key]] = known
        self._value = sum(policy.value(c, False) for c in known)
        self._extend(0, short.workers, short.bytes, 0.0, [])

    def _extend(
        self, at: int, workers: int, size: int, value: float, chosen: list[EvictionCandidate[Key]]
    ) -> None:
        """Try all sets that consist of `chosen` and some of the candidates from `at` on."""
        self._left -= 1
        if value >= self._value or self._left < 0:
            return
        if workers <= 0 and size <= 0:
            self.best, self._value = list(chosen), value
        elif at < len(self._idle):
            candidate, more = self._idle[at]
            chosen.append(candidate)
            self._extend(at + 1, workers - 1, size - candidate.bytes, value + more, chosen)
            chosen.pop()
            self._extend(at + 1, workers, size, value, chosen)


class PressureLevel(Enum):
    """Workers that may be evicted for it."""

    NONE = 0
    IDLE = 1
    BUSY = 2
    """A busy worker too, when no idle one is left."""


def pressure_level(event: ev.MemorySampled, limits: Limits) -> PressureLevel:
    """Return the level of a memory sample."""
    if 0 < limits.critical_percent < event.used_percent:
        return PressureLevel.BUSY
    full = 0 < limits.threshold_percent < event.used_percent
    stalls = (
        limits.threshold_percent > 0 and 0 < limits.psi_threshold_percent < event.pressure_percent
    )
    return PressureLevel.IDLE if full or stalls else PressureLevel.NONE
