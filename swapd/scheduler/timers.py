"""A timer per worker, backed by a heap with lazy deletion."""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush

from swapd.domain.events import WorkerId


class Timers:
    """Times of the workers, with a cheap setter and a cheap minimum.

    Replaced times stay in the heap until they reach its top, or are too many.
    """

    __slots__ = ("_heap", "_times", "soonest")

    def __init__(self) -> None:
        self.soonest = math.inf
        """Time at which the next worker is due; infinite if none is."""
        self._times: dict[WorkerId, float] = {}
        self._heap: list[tuple[float, WorkerId]] = []

    def set(self, worker: WorkerId, when: float) -> None:
        """Set the time of a worker; infinite: it has none."""
        before = self._times.get(worker, math.inf)
        if before == when:
            return
        if when == math.inf:
            del self._times[worker]
        else:
            self._times[worker] = when
            heappush(self._heap, (when, worker))
            if len(self._heap) > 2 * len(self._times) + 64:
                self._heap = [(when, worker) for worker, when in self._times.items()]
                heapify(self._heap)
        if when < self.soonest:
            self.soonest = when
        elif before == self.soonest:
            self.soonest = self._first()

    def _first(self) -> float:
        heap = self._heap
        while heap and self._times.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else math.inf

    def due(self, now: float) -> list[WorkerId]:
        """Return the workers whose time is past. They stay due until their time is set anew."""
        return [worker for worker, when in self._times.items() if when <= now]
