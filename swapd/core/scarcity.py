"""Memory that the books have and the machine has not: other programs hold it.

A model that would fit by the books is started when as much as it needs is free in fact. Else it
waits: for workers that are on their way out, then for idle ones that are sent after them, then for
the other programs, which is the one thing that has to be looked at again and again. Not for ever.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

PATIENCE = 10.0
"""Seconds for which a model waits for memory that other programs hold."""
PAUSE = 0.5
"""Seconds from one look at the free memory to the next."""


@dataclass(slots=True)
class Scarcity:
    """Who waits for memory in fact, and when to look again."""

    since: dict[str, float] = field(default_factory=dict)
    look_at: float = math.inf
    """When to look again though nothing was heard."""
    seen_at: int = -1
    """Version of the books at the last look."""
    free: int | None = None
    """Bytes, while the fact that tells them is being handled."""

    def ought_to_look(self, version: int, now: float) -> bool:
        """Whether a look may find something else than the last one did."""
        return version != self.seen_at or now >= self.look_at

    def looks(self, version: int) -> None:
        """A look is ordered."""
        self.seen_at, self.look_at = version, math.inf

    def waits(self, model: str, now: float) -> float:
        """It is found short; since when it has been."""
        return self.since.setdefault(model, now)

    def fits(self, model: str) -> None:
        """It waits no longer."""
        self.since.pop(model, None)

    def only(self, models: Collection[str]) -> None:
        """Nobody but these can be waiting."""
        self.since = {model: since for model, since in self.since.items() if model in models}
        if not self.since:
            self.look_at = math.inf
