"""Request-rate estimator: the probability that the next request is for a given model.

Requests are counted in three windows with exponential decay: minutes, hours and days. In each, the
share of a model is its part of the recent requests. The window that predicts best differs between
installations, so that is learned: the windows are mixed in the proportion in which they predicted
the requests so far.

A model that is requested again and again stays loaded anyway. So in the longer windows, and for
learning, a request counts by the pause before it: fully after a long absence, next to nothing
within a conversation.
"""

from __future__ import annotations

import math
from math import exp
from typing import TypeAlias

NEAR, MIDDLE, FAR = 90.0, 7200.0, 400_000.0
"""Seconds in which counts decay to a third (1/e), in each of the windows."""
PAUSE = 600.0
"""Seconds of absence after which a request counts for two thirds in the longer windows."""
LEARN = 0.01
"""Weight of one request after a long absence in the mixture."""
UNSEEN = 0.02
"""Requests credited to each model in every window, so that no probability is 0."""


Windows: TypeAlias = tuple[float, float, float]
"""A number for each window. Code on it is written out without loops: it runs for each request."""


class RateEstimator:
    """Decaying counts of the requests for one model, in each window."""

    __slots__ = ("counts", "last")

    def __init__(self) -> None:
        self.counts: Windows = (0.0, 0.0, 0.0)
        self.last = -math.inf

    def decayed(self, now: float) -> Windows:
        """Return the counts, decayed to this time."""
        past = self.last - now
        near, middle, far = self.counts
        return near * exp(past / NEAR), middle * exp(past / MIDDLE), far * exp(past / FAR)

    def count(self, decayed: Windows, weight: float, now: float) -> None:
        """Add a request to the counts that `decayed` returned, with a weight in longer windows."""
        near, middle, far = decayed
        self.counts = near + 1.0, middle + weight, far + weight
        self.last = now


class Forecast:
    """Probabilities of the next request, over all models that were ever requested."""

    def __init__(self) -> None:
        self._all = RateEstimator()
        self._models = 0
        self._mixture: Windows = (1.0 / 3, 1.0 / 3, 1.0 / 3)

    def note(self, demand: RateEstimator, now: float) -> None:
        """Count a request, and learn from the window that predicted it best."""
        self._models += demand.last == -math.inf
        weight = 1.0 - exp((demand.last - now) / PAUSE)
        mine, total = demand.decayed(now), self._all.decayed(now)
        parts = self._parts(mine, total)
        predicted, learn = sum(parts), LEARN * weight
        a, b, c = self._mixture
        self._mixture = (
            a + learn * (parts[0] / predicted - a),
            b + learn * (parts[1] / predicted - b),
            c + learn * (parts[2] / predicted - c),
        )
        demand.count(mine, weight, now)
        self._all.count(total, weight, now)

    def probability(self, demand: RateEstimator, now: float) -> float:
        """Return the probability that the next request is for this model."""
        return sum(self._parts(demand.decayed(now), self._all.decayed(now)))

    def _parts(self, mine: Windows, total: Windows) -> Windows:
        """Return the probability by each window, times its share of the mixture."""
        credit = UNSEEN * max(1, self._models)
        a, b, c = self._mixture
        return (
            a * (mine[0] + UNSEEN) / (total[0] + credit),
            b * (mine[1] + UNSEEN) / (total[1] + credit),
            c * (mine[2] + UNSEEN) / (total[2] + credit),
        )
