"""How likely something is to be asked for again soon, from when it was asked for before."""

from __future__ import annotations

import math

SPANS = (60.0, 900.0, 14_400.0)
"""Seconds of memory: of the burst that is on, of the session, of the habit."""


class Demand:
    """Requests a second, seen over several spans of time at once; what is past fades."""

    __slots__ = ("_counts", "_last")

    def __init__(self) -> None:
        self._counts = [0.0] * len(SPANS)
        self._last = 0.0

    def note(self, now: float) -> None:
        """It is asked for now."""
        past = now - self._last
        self._counts = [
            1.0 + count * math.exp(-past / span)
            for count, span in zip(self._counts, SPANS, strict=True)
        ]
        self._last = now

    def rate(self, now: float) -> float:
        """Requests a second to be expected: the mean of what the spans tell."""
        past = now - self._last
        return sum(
            count * math.exp(-past / span) / span
            for count, span in zip(self._counts, SPANS, strict=True)
        ) / len(SPANS)
