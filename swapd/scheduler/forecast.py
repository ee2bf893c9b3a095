"""How likely each of many things is to be asked for next, from when each was asked for before.

There are three views of the past: what is on now, the last hours, the days. In each, a thing's
share is how much of what was asked lately was asked of it. Which view tells most about what comes
differs from one installation to another, so that is learned: the views are mixed in the proportion
in which they foretold what came.

What is asked again and again stays loaded anyway. So in the longer views, and for learning, a
request counts by the pause before it: full after long absence, next to nothing within a
conversation.
"""

from __future__ import annotations

import math
from math import exp
from typing import TypeAlias

NEAR, MIDDLE, FAR = 90.0, 7200.0, 400_000.0
"""Seconds in which what is past fades to a third, in each of the views."""
PAUSE = 600.0
"""Seconds of absence after which a request counts for two thirds in the longer views."""
LEARN = 0.01
"""How much one request after long absence changes the mixture."""
UNSEEN = 0.02
"""Requests that everything is credited with in every view, so that none is impossible."""


Views: TypeAlias = tuple[float, float, float]
"""A figure for each view. Written out and not looped over, for each request has some of them."""


class RateEstimator:
    """What one thing was asked for, in each view."""

    __slots__ = ("counts", "last")

    def __init__(self) -> None:
        self.counts: Views = (0.0, 0.0, 0.0)
        self.last = -math.inf

    def at(self, now: float) -> Views:
        """The counts, faded to this moment."""
        past = self.last - now
        near, middle, far = self.counts
        return near * exp(past / NEAR), middle * exp(past / MIDDLE), far * exp(past / FAR)

    def count(self, faded: Views, visit: float, now: float) -> None:
        """One request more now, given what `at` tells and how much of a visit it is."""
        near, middle, far = faded
        self.counts = near + 1.0, middle + visit, far + visit
        self.last = now


class Forecast:
    """What is asked for next, among all things that were ever asked for."""

    def __init__(self) -> None:
        self._all = RateEstimator()
        self._things = 0
        self._mixture: Views = (1.0 / 3, 1.0 / 3, 1.0 / 3)

    def note(self, demand: RateEstimator, now: float) -> None:
        """A thing is asked for: learn which view foretold it, and count it."""
        self._things += demand.last == -math.inf
        visit = 1.0 - exp((demand.last - now) / PAUSE)
        mine, everything = demand.at(now), self._all.at(now)
        parts = self._parts(mine, everything)
        told, learn = sum(parts), LEARN * visit
        a, b, c = self._mixture
        self._mixture = (
            a + learn * (parts[0] / told - a),
            b + learn * (parts[1] / told - b),
            c + learn * (parts[2] / told - c),
        )
        demand.count(mine, visit, now)
        self._all.count(everything, visit, now)

    def share(self, demand: RateEstimator, now: float) -> float:
        """The likelihood that this thing is what is asked for next."""
        return sum(self._parts(demand.at(now), self._all.at(now)))

    def _parts(self, mine: Views, everything: Views) -> Views:
        credit = UNSEEN * max(1, self._things)
        a, b, c = self._mixture
        return (
            a * (mine[0] + UNSEEN) / (everything[0] + credit),
            b * (mine[1] + UNSEEN) / (everything[1] + credit),
            c * (mine[2] + UNSEEN) / (everything[2] + credit),
        )
