"""Offline bounds: the least seconds of loading for a scheduler that knows all requests ahead.

Both are for requests that are served in the order in which they come, each by a model that is in
memory then; loading, serving and stopping take no time but what is counted. After a request its
model is either kept until its next one, which takes its bytes at every request in between, or is
let go and loaded again. Which of these intervals to keep, within the memory that the request of
each moment leaves, is the sized form of the question that Belady's rule answers for pages.

`belady` keeps intervals greedily, by the seconds saved for each byte and step, where they fit: an
answer that can be had, not always the best. `floor` is a proven lower bound: the memory of each
step gets a price, keeping an interval is free where it pays its price, and prices are improved
for a number of rounds (Lagrangian relaxation). The best that can be had lies between the two.
A scheduler may do better than both where it serves requests out of order.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from swapd.simulation.traces import Trace

ROUNDS = 300


@dataclass(frozen=True, slots=True)
class Interval:
    """From one request for a model to the next: positions in the trace."""

    first: int
    last: int
    bytes: int
    seconds: float
    """Seconds of loading that keeping the model saves."""


@dataclass(frozen=True, slots=True)
class OfflineBounds:
    """Seconds of loading, and loads, with knowledge of all requests."""

    belady: float
    loads: int
    floor: float


def bounds(trace: Trace, budget: int) -> OfflineBounds:
    """Both bounds for a memory of so many bytes, in which every model fits alone."""
    last_of: dict[str, int] = {}
    intervals: list[Interval] = []
    everything = 0.0
    for here, ask in enumerate(trace.asks):
        model = trace.models[ask.model]
        everything += model.load
        if ask.model in last_of:
            intervals.append(Interval(last_of[ask.model], here, model.bytes, model.load))
        last_of[ask.model] = here
    free = [budget - trace.models[ask.model].bytes for ask in trace.asks]
    kept = _greedy(intervals, list(free))
    saved = sum(interval.seconds for interval in kept)
    floor = everything - _most_saved(intervals, free, everything - saved)
    return OfflineBounds(everything - saved, len(trace.asks) - len(kept), floor)


def _greedy(intervals: list[Interval], free: list[int]) -> list[Interval]:
    """Intervals that fit together, those first that save most for what they take."""

    def price(i: Interval) -> float:
        return i.seconds / (i.bytes * (i.last - i.first - 1 or 0.01))

    kept = []
    for interval in sorted(intervals, key=price, reverse=True):
        steps = range(interval.first + 1, interval.last)
        if all(free[step] >= interval.bytes for step in steps):
            kept.append(interval)
            for step in steps:
                free[step] -= interval.bytes
    return kept


def _most_saved(intervals: list[Interval], free: list[int], guess: float) -> float:
    """An upper bound on the seconds that can be saved."""
    scale = max(free, default=1) or 1
    room = [space / scale for space in free]
    takes = [interval.bytes / scale for interval in intervals]
    prices = [0.0] * len(free)
    best = sum(interval.seconds for interval in intervals)
    pace = guess / max(1, len(free))
    for turn in range(ROUNDS):
        paid = [0.0, *accumulate(prices)]
        change = [0.0] * (len(free) + 1)
        saved = sum(price * space for price, space in zip(prices, room, strict=True))
        for interval, share in zip(intervals, takes, strict=True):
            gain = interval.seconds - share * (paid[interval.last] - paid[interval.first + 1])
            if gain > 0:
                saved += gain
                change[interval.first + 1] += share
                change[interval.last] -= share
        best = min(best, saved)
        step = pace / (1 + turn / 20)
        prices = [
            max(0.0, price + step * (used - space))
            for price, used, space in zip(prices, accumulate(change), room, strict=False)
        ]
    return best
