"""Room: what workers take and what the limits leave, in workers and in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from swapd.words.catalog import Limits


@dataclass(frozen=True, slots=True)
class Room:
    """An amount of the two things that run out: places for workers, and bytes."""

    workers: int = 0
    bytes: int = 0

    def __add__(self, other: Room) -> Room:
        return Room(self.workers + other.workers, self.bytes + other.bytes)

    def __sub__(self, other: Room) -> Room:
        return Room(self.workers - other.workers, self.bytes - other.bytes)

    def __bool__(self) -> bool:
        return self.workers > 0 or self.bytes > 0


def missing(taken: Room, limits: Limits) -> Room:
    """What `taken` has above the limits, never negative; falsy when all of it fits."""
    return Room(
        max(0, taken.workers - limits.max_resident) if limits.max_resident else 0,
        max(0, taken.bytes - limits.budget_bytes) if limits.budget_bytes else 0,
    )
