"""How likely each of many things is to be asked for next, from when each was asked for before.

There are as many views of the past as there are spans: what is on now, the last hours, the days.
In each, a thing's share is how much of what was asked lately was asked of it. Which view tells
most about what comes differs from one installation to another, so that is learned: the views are
mixed in the proportion in which they foretold what came.

What is asked again and again stays loaded anyway. So in the longer views, and for learning, a
request counts by the pause before it: full after long absence, next to nothing within a
conversation.
"""

from __future__ import annotations

import math
from math import exp

SPANS = (90.0, 7200.0, 400_000.0)
"""Seconds in which what is past fades to a third."""
PAUSE = 600.0
"""Seconds of absence after which a request counts for two thirds in the longer views."""
LEARN = 0.01
"""How much one request after long absence changes the mixture."""
UNSEEN = 0.02
"""Requests that everything is credited with in every view, so that none is impossible."""


class Demand:
    """What one thing was asked for, seen over each span."""

    __slots__ = ("counts", "last")

    def __init__(self) -> None:
        self.counts = [0.0] * len(SPANS)
        self.last = -math.inf

    def at(self, now: float) -> list[float]:
        """The counts, faded to this moment."""
        past = self.last - now
        return [c * exp(past / span) for c, span in zip(self.counts, SPANS)]  # noqa: B905

    def count(self, faded: list[float], visit: float, now: float) -> None:
        """One request more now, given what `at` tells and how much of a visit it is."""
        self.counts = [faded[0] + 1.0, *(count + visit for count in faded[1:])]
        self.last = now


class Forecast:
    """What is asked for next, among all things that were ever asked for."""

    def __init__(self) -> None:
        self._all = Demand()
        self._things = 0
        self._mixture = [1.0 / len(SPANS)] * len(SPANS)

    def note(self, demand: Demand, now: float) -> None:
        """A thing is asked for: learn which view foretold it, and count it."""
        self._things += demand.last == -math.inf
        visit = 1.0 - math.exp((demand.last - now) / PAUSE)
        mine, everything = demand.at(now), self._all.at(now)
        parts = self._parts(mine, everything)
        told, learn = sum(parts), LEARN * visit
        self._mixture = [
            weight + learn * (part / told - weight)
            for weight, part in zip(self._mixture, parts, strict=True)
        ]
        demand.count(mine, visit, now)
        self._all.count(everything, visit, now)

    def share(self, demand: Demand, now: float) -> float:
        """The likelihood that this thing is what is asked for next."""
        return sum(self._parts(demand.at(now), self._all.at(now)))

    def _parts(self, mine: list[float], everything: list[float]) -> list[float]:
        credit = UNSEEN * max(1, self._things)
        return [
            weight * (count + UNSEEN) / (total + credit)
            for weight, count, total in zip(self._mixture, mine, everything, strict=True)
        ]
