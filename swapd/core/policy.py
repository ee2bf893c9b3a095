"""Who is worth keeping when room is needed: policies over anything that holds room.

A policy sees candidates and not what they stand for, so that one table serves workers in memory
and files on a disk alike. It says three things: whether anybody goes to make room for another,
whether idleness alone ends anybody, and in which order they go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

from swapd.core.room import Room

Key = TypeVar("Key", int, str)


@dataclass(slots=True)
class Candidate(Generic[Key]):
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
class Policy:
    """What decides who goes."""

    name: str
    makes_room: bool
    """Whether anybody goes for want of room; else who finds none is refused."""
    heeds_time: bool
    """Whether idleness beyond the time to live ends anybody."""
    adds_up: bool
    """Whether the worth of several is the sum of theirs."""
    worth: Callable[[Candidate[int] | Candidate[str], bool], float]
    """Who has least goes first; by the byte (True), or as it is."""


def _recency(c: Candidate[int] | Candidate[str], _: bool) -> float:
    return c.last_used


def _frequency(c: Candidate[int] | Candidate[str], _: bool) -> float:
    return c.uses


def _cost(c: Candidate[int] | Candidate[str], by_bytes: bool) -> float:
    """Seconds of loading that keeping it is likely to save, for each request and byte.

    What is in use is wanted now, all of it alike: what it takes to bring back decides.
    """
    saved = c.weight * c.back * (1.0 if c.in_use else c.likely)
    return saved / max(c.bytes, 1) if by_bytes else saved


POLICIES = MappingProxyType(
    {
        policy.name: policy
        for policy in (
            Policy("cost", True, True, True, _cost),
            Policy("lru", True, False, False, _recency),
            Policy("lru-ttl", True, True, False, _recency),
            Policy("lfu", True, False, False, _frequency),
            Policy("ttl", False, True, False, _recency),
            Policy("no-evict", False, False, False, _recency),
        )
    }
)


def reluctance(
    policy: Policy, short: Room
) -> Callable[[Candidate[Key]], tuple[bool, float, float, Key]]:
    """What candidates are sorted by when so much room is short; the first goes first."""
    by_bytes = short.bytes > 0

    def key(c: Candidate[Key]) -> tuple[bool, float, float, Key]:
        return (c.in_use, policy.worth(c, by_bytes), c.last_used, c.key)

    return key
