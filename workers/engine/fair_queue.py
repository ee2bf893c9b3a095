"""A queue of requests that is fair between tenants. Pure: no clock, no model.

Fairness is by cost and not by number of requests: each tenant has a counter of the tokens computed
for it, and the next request is the oldest of the tenant with the smallest counter. An idle tenant
saves nothing up: when it returns, its counter is at least that of the tenants served meanwhile. So
of two tenants that always have requests waiting, neither is ahead of the other by more than the
cost of one request and of the contents of the slots.

A request that does not fit yet is skipped for one that does, so that a request for more than there
is blocks no other. After MAX_SKIPS skips it is skipped no more, so that it does not starve.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar

PREFILL_COST, TOKEN_COST = 1, 3
"""Cost of a prompt's token and of a generated one: the 60 MB model reads 2,460 tokens a second and
generates 900."""
MAX_SKIPS = 16
"""Skips of a request, after which no other is admitted before it."""
MAX_COUNTERS = 1000
"""Counters of tenants in memory; beyond that, the smaller half of them is dropped."""


class FairQueueItem(Protocol):
    """The part of a request that the queue needs."""

    number: int
    """Its age: smaller is older."""
    tenant: str
    skipped: int
    """Admissions of younger or costlier requests before it because it did not fit."""

    @property
    def started(self) -> float:
        """Time of its first slot; 0 before it. A request that had one goes first."""

    @property
    def pending(self) -> int:
        """Tokens to be read."""


W = TypeVar("W", bound=FairQueueItem)


class FairQueue(Generic[W]):
    """The waiting requests of all tenants."""

    def __init__(self) -> None:
        self._preempted: list[W] = []
        """Requests that have had a slot, oldest first."""
        self._tenants: dict[str, list[W]] = {}
        """Requests of each tenant, oldest first; no empty lists."""
        self._spent: dict[str, float] = {}
        """Counters by tenant; `_floor` for a tenant without one."""
        self._floor = 0.0
        """The smallest counter of the waiting tenants at the latest admission."""

        self._length = 0

    def __len__(self) -> int:
        return self._length  # stored, because another thread may read it

    def __iter__(self) -> Iterator[W]:
        yield from self._preempted
        for requests in self._tenants.values():
            yield from requests

    def add(self, request: W) -> None:
        """Add a request."""
        self._length += 1
        if request.started:
            insort(self._preempted, request, key=_age)
        else:
            insort(self._tenants.setdefault(request.tenant, []), request, key=_age)

    def remove(self, request: W) -> None:
        """Remove a request if it is in the queue."""
        own = self._tenants.get(request.tenant, [])
        for requests in (self._preempted, own):
            if request in requests:
                requests.remove(request)
                self._length -= 1
        if not own:
            self._tenants.pop(request.tenant, None)

    def in_order(self) -> Iterator[W]:
        """Yield the requests in the order in which to try them.

        The queue must not change before the iteration is left.
        """
        yield from self._preempted
        # A heap of each tenant's next request; the cost of the one before it is added in advance.
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

    def admit(self, request: W, skipped: list[W]) -> None:
        """Take `request` out; count a skip for those that were tried before it and did not fit."""
        for other in skipped:
            other.skipped += 1
        if self._tenants:
            least = min(self._counter(tenant) for tenant in self._tenants)
            self._floor = max(self._floor, least)
        if len(self._spent) > MAX_COUNTERS:
            by_cost = sorted(self._spent, key=self._spent.__getitem__)
            self._spent = {tenant: self._spent[tenant] for tenant in by_cost[MAX_COUNTERS // 2 :]}
        self.remove(request)

    def account(self, tenant: str, *, prefill: int = 0, generated: int = 0) -> None:
        """Add computed tokens to the counter of a tenant."""
        cost = prefill * PREFILL_COST + generated * TOKEN_COST
        self._spent[tenant] = self._counter(tenant) + cost

    def _counter(self, tenant: str) -> float:
        return max(self._spent.get(tenant, 0.0), self._floor)


def _age(request: FairQueueItem) -> int:
    return request.number
