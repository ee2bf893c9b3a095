"""When whom is to be looked at: the soonest of many times that keep changing."""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush

from swapd.domain.events import WorkerId


class Timers:
    """One time for each worker. Setting one and asking for the soonest are cheap.

    Times that were replaced stay in the heap until they come up, or are too many.
    """

    __slots__ = ("_heap", "_when", "soonest")

    def __init__(self) -> None:
        self.soonest = math.inf
        """The next time at which somebody is due; infinite when nobody is."""
        self._when: dict[WorkerId, float] = {}
        self._heap: list[tuple[float, WorkerId]] = []

    def set(self, worker: WorkerId, when: float) -> None:
        """The worker's time is now this one; infinite: it has none."""
        before = self._when.get(worker, math.inf)
        if before == when:
            return
        if when == math.inf:
            del self._when[worker]
        else:
            self._when[worker] = when
            heappush(self._heap, (when, worker))
            if len(self._heap) > 2 * len(self._when) + 64:
                self._heap = [(when, worker) for worker, when in self._when.items()]
                heapify(self._heap)
        if when < self.soonest:
            self.soonest = when
        elif before == self.soonest:
            self.soonest = self._first()

    def _first(self) -> float:
        heap = self._heap
        while heap and self._when.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else math.inf

    def due(self, now: float) -> list[WorkerId]:
        """Those whose time has come. They stay due until their time is set anew."""
        return [worker for worker, when in self._when.items() if when <= now]
