"""Who comes next among the waiting. Pure: no clock, no model.

Fair between tenants by what they cost, not by how often they ask: each has a counter of the
tokens computed for it, and the next request is the oldest of the tenant with the smallest one. A
tenant that asks for nothing saves nothing up: when it comes back, its counter is at least what
the served ones had in the meantime. So of two tenants that always have requests waiting, neither
is ahead of the other by more than one request's cost and what the slots hold.

Who does not fit yet is passed by who does, so that nobody waits behind a request for more than
there is; after MOST_PASSES of it, it is passed no more, so that it does not wait for ever.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar

PREFILL_COST, TOKEN_COST = 1, 3
"""What a prompt's token costs and what a generated one does: the 60 MB model reads 2,460 tokens a
second and writes 900."""
MOST_PASSES = 16
MOST_COUNTERS = 1000
"""Tenants that are remembered before those half of them are forgotten who owe least."""


class FairQueueItem(Protocol):
    """A request, as the queue sees it."""

    number: int
    """Its age: smaller is older."""
    tenant: str
    passed: int
    """How often somebody younger or dearer came in before it because it did not fit."""

    @property
    def started(self) -> float:
        """Not 0 once it has had a slot: then it was paid for, and goes first."""

    @property
    def pending(self) -> int:
        """Tokens to be read."""


W = TypeVar("W", bound=FairQueueItem)


class FairQueue(Generic[W]):
    """The waiting requests of all tenants."""

    def __init__(self) -> None:
        self._returned: list[W] = []
        self._tenants: dict[str, list[W]] = {}
        """Each one's requests, oldest first; no empty lists."""
        self._spent: dict[str, float] = {}
        """Counters; who is not in it has `_floor`."""
        self._floor = 0.0
        """The smallest counter of those who waited, when somebody was last let in."""

        self._length = 0

    def __len__(self) -> int:
        return self._length  # kept, because another thread may ask

    def __iter__(self) -> Iterator[W]:
        yield from self._returned
        for requests in self._tenants.values():
            yield from requests

    def add(self, request: W) -> None:
        """Somebody waits."""
        self._length += 1
        if request.started:
            insort(self._returned, request, key=_age)
        else:
            insort(self._tenants.setdefault(request.tenant, []), request, key=_age)

    def remove(self, request: W) -> None:
        """Somebody waits no more; nothing if they did not."""
        own = self._tenants.get(request.tenant, [])
        for requests in (self._returned, own):
            if request in requests:
                requests.remove(request)
                self._length -= 1
        if not own:
            self._tenants.pop(request.tenant, None)

    def in_order(self) -> Iterator[W]:
        """Everybody in the order in which they are to be tried; stop when there is no more room.

        The queue must not change until it is stopped.
        """
        yield from self._returned
        heap = [
            (self._counter(tenant), own[0].number, tenant, 0)
            for tenant, own in self._tenants.items()
        ]
        heapify(heap)
        while heap:
            spent, _, tenant, place = heappop(heap)
            own = self._tenants[tenant]
            yield own[place]
            if place + 1 < len(own):
                spent += own[place].pending * PREFILL_COST
                heappush(heap, (spent, own[place + 1].number, tenant, place + 1))

    def let_in(self, request: W, passing: list[W]) -> None:
        """`request` comes in, past those who were tried before it and did not fit."""
        for other in passing:
            other.passed += 1
        if self._tenants:
            least = min(self._counter(tenant) for tenant in self._tenants)
            self._floor = max(self._floor, least)
        if len(self._spent) > MOST_COUNTERS:
            dearest = sorted(self._spent, key=lambda who: self._spent[who])[MOST_COUNTERS // 2 :]
            self._spent = {who: self._spent[who] for who in dearest}
        self.remove(request)

    def charge(self, tenant: str, *, prefill: int = 0, generated: int = 0) -> None:
        """Something was computed for `tenant`."""
        cost = prefill * PREFILL_COST + generated * TOKEN_COST
        self._spent[tenant] = self._counter(tenant) + cost

    def _counter(self, tenant: str) -> float:
        return max(self._spent.get(tenant, 0.0), self._floor)


def _age(request: FairQueueItem) -> int:
    return request.number
