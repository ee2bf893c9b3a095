"""Room: what workers take and what the limits leave, in workers and in bytes."""

from __future__ import annotations

from typing import NamedTuple

from swapd.domain.models import Limits


class Room(NamedTuple):
    """An amount of the two things that run out: places for workers, and bytes.

    A tuple, because a plan makes many of them; but what is added are amounts.
    """

    workers: int = 0
    bytes: int = 0

    def __add__(self, other: Room) -> Room:  # type: ignore[override]
        return Room(self[0] + other[0], self[1] + other[1])

    def __sub__(self, other: Room) -> Room:
        return Room(self[0] - other[0], self[1] - other[1])

    def __bool__(self) -> bool:
        return self[0] > 0 or self[1] > 0


NOTHING = Room()


def missing(taken: Room, limits: Limits) -> Room:
    """What `taken` has above the limits, never negative; falsy when all of it fits."""
    workers = taken[0] - limits.max_resident if limits.max_resident else 0
    size = taken[1] - limits.budget_bytes if limits.budget_bytes else 0
    if workers <= 0 and size <= 0:
        return NOTHING
    return Room(max(0, workers), max(0, size))
