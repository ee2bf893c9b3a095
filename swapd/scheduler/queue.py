"""The queue of a model: by priority, then by tokens of the tenant, then by age.

A step of priority counts as `STEP` seconds of waiting. So a request is overtaken only by those
that arrive within that time after it, for each step of their higher priority, and no request
waits without bound.

Tenants of equal priority share by tokens. A tenant is charged the tokens that it was served, and
a part of those that it waits for, up to `MAX_QUEUED_TOKENS`: a tenant with many requests ranks
behind those with few, and tenants with many requests each are served alike. Differences below
`SLACK` are ignored and age decides: an order among such tenants would only make some wait longer.
A tenant that returns keeps its charge, but is raised to at most `CREDIT` below the tenant served
last: absence earns no more than that. A tenant that waits and is served nothing for `MAX_SKIPPED`
seconds is next in any case. Within a tenant the order is that of arrival.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from swapd.domain.events import RequestId

STEP = 30.0
"""Seconds of waiting that a step of priority counts."""
MAX_PRIORITY = 10
"""Priorities beyond this are cut off, so that waits are bounded."""
CREDIT = 16_000.0
"""Tokens that a returning tenant may be served before others."""
QUEUED_WEIGHT = 0.25
"""Weight of a token that a tenant waits for, against one that it was served."""
MAX_QUEUED_TOKENS = 100_000.0
"""Maximum charge for the tokens that a tenant waits for."""
SLACK = 1
"""Requests of mean length, for each slot, that make no difference between tenants."""
MAX_SKIPPED = 120.0
"""Seconds for which a waiting tenant may be served nothing while others are."""
Rank: TypeAlias = tuple[float, int]
"""Time of arrival, brought forward by priority; then the position in the order of arrival."""

NEVER: Rank = (math.inf, 0)
"""Rank behind all requests."""


@dataclass(slots=True)
class QueuedRequest:
    """A request that is not assigned yet."""

    request: RequestId
    position: int
    """Position in the order of arrival, over all models."""
    needs_slot: bool
    since: float
    tenant: str = ""
    priority: int = 0
    keep_alive: float | None = None
    fingerprint: str = ""
    losses: int = 0
    """Workers that ended while they served it."""
    kills: int = 0
    """Losses by an external kill."""
    crashes: int = 0
    """Losses that it may have caused."""
    rank: Rank = field(init=False)

    def __post_init__(self) -> None:
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            self.priority = max(-MAX_PRIORITY, min(self.priority, MAX_PRIORITY))
        self.rank = (self.since - STEP * self.priority, self.position)

    @property
    def isolated(self) -> bool:
        """True if it must be served alone (see `quarantine`)."""
        return self.crashes > 1 and self.needs_slot


def insert(queue: dict[RequestId, QueuedRequest], request: QueuedRequest) -> None:
    """Insert a request at the end, or at its old position if it is retried."""
    queue[request.request] = request
    if request.losses:
        for later in [r for r in queue.values() if r.position > request.position]:
            queue[later.request] = queue.pop(later.request)


class PriorityLevel:
    """Requests of one priority: a queue for each tenant, and the tokens served to each."""

    __slots__ = ("_granted", "_mean_tokens", "_served", "_since", "by_tenant", "waiting")

    def __init__(self, mean_tokens: float) -> None:
        self._mean_tokens = mean_tokens
        """Mean tokens of a request."""
        self._granted: dict[str, float] = {}
        """Time at which a request of each tenant was last assigned."""
        self.waiting: dict[RequestId, QueuedRequest] = {}
        self.by_tenant: dict[str, dict[RequestId, QueuedRequest]] = {}
        self._served: dict[str, float] = {}
        """Tokens charged to each tenant."""
        self._since = 0.0
        """Tokens served to the tenant that was assigned last, before that."""

    def add(self, request: QueuedRequest) -> None:
        """Add a request."""
        insert(self.waiting, request)
        of_tenant = self.by_tenant.get(request.tenant)
        if of_tenant is None:
            of_tenant = self.by_tenant[request.tenant] = {}
            self._raise_charge(request.tenant)
        insert(of_tenant, request)

    def _raise_charge(self, tenant: str) -> None:
        """Raise the charge of a tenant that returns, so that absence earns at most `CREDIT`."""
        served = self._served
        served[tenant] = max(served.get(tenant, 0.0), self._since - CREDIT)
        if len(served) > 2 * len(self.by_tenant) + 64:
            # The charge of an absent tenant below that bound would be raised anyway.
            floor = self._since - CREDIT
            self._served = {t: s for t, s in served.items() if t in self.by_tenant or s > floor}
            self._granted = {t: at for t, at in self._granted.items() if t in self._served}

    def remove(self, request: QueuedRequest) -> None:
        """Remove a request."""
        del self.waiting[request.request]
        of_tenant = self.by_tenant[request.tenant]
        del of_tenant[request.request]
        if not of_tenant:
            del self.by_tenant[request.tenant]

    def oldest(self) -> QueuedRequest:
        """Return the request that arrived first."""
        return next(iter(self.waiting.values()))

    def next(self, slots: int, now: float) -> QueuedRequest:
        """Return the oldest request of the tenants with least charge, or skipped for long."""
        if len(self.by_tenant) == 1:
            return self.oldest()
        served, mean_tokens = self._served, self._mean_tokens
        each, long_ago, least = QUEUED_WEIGHT * mean_tokens, now - MAX_SKIPPED, math.inf
        # 1. The charge of each tenant: tokens served, and a part of those that it waits for.
        heads = list[tuple[float, QueuedRequest]]()
        for tenant, of_tenant in self.by_tenant.items():
            head = next(iter(of_tenant.values()))
            if head.since < long_ago and self._granted.get(tenant, -math.inf) < long_ago:
                charge = -math.inf
            else:
                charge = served[tenant] + min(each * len(of_tenant), MAX_QUEUED_TOKENS)
            least = min(least, charge)
            heads.append((charge, head))
        # 2. The oldest among those whose charge is equal to the least but for the slack.
        most, found = least + SLACK * slots * mean_tokens, None
        for charge, head in heads:
            if charge <= most and (found is None or head.position < found.position):
                found = head
        assert found is not None
        return found

    def grant(self, tenant: str, tokens: float, now: float) -> None:
        """Charge a tenant the estimated tokens of a request that is assigned."""
        self._since = max(self._since, self._served[tenant])
        self._served[tenant] += tokens
        self._granted[tenant] = now
        self._mean_tokens = tokens or self._mean_tokens

    def correct(self, tenant: str, tokens: float) -> None:
        """Correct the charge for a request by the difference from its estimate in tokens."""
        if tenant in self._served:
            # A request that was assigned before others queued is not charged here.
            self._served[tenant] = max(0.0, self._served[tenant] + tokens)


class RequestQueue:
    """Queued requests of one model.

    The cost of each operation depends on the number of tenants and priorities, not of requests.
    """

    __slots__ = ("_levels", "_mean_tokens", "_waiting", "slotless")

    def __init__(self, mean_tokens: float) -> None:
        self._mean_tokens = mean_tokens
        """Mean tokens of a request, as known when the queue was created."""
        self._waiting: dict[RequestId, QueuedRequest] = {}
        self.slotless = 0
        """Number of requests that need no slot."""
        self._levels: dict[int, PriorityLevel] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[RequestId]:
        return iter(self._waiting)

    def add(self, waiting: QueuedRequest) -> None:
        """Add a request."""
        insert(self._waiting, waiting)
        self.slotless += not waiting.needs_slot
        level = self._levels.get(waiting.priority)
        if level is None:
            level = self._levels[waiting.priority] = PriorityLevel(self._mean_tokens)
        level.add(waiting)

    def remove(self, request: RequestId) -> None:
        """Remove a request."""
        waiting = self._waiting.pop(request)
        self.slotless -= not waiting.needs_slot
        level = self._levels[waiting.priority]
        level.remove(waiting)
        if not level.waiting:
            # Charges matter only among requests that wait: without any, all start anew.
            del self._levels[waiting.priority]

    def head(self) -> QueuedRequest:
        """Return the request of first rank, which is also the rank of the model."""
        if len(self._levels) == 1:
            return next(iter(self._waiting.values()))
        return min((level.oldest() for level in self._levels.values()), key=lambda w: w.rank)

    def next(self, slots: int, now: float) -> QueuedRequest:
        """Return the request that a worker with so many slots serves next."""
        return self._levels[self.head().priority].next(slots, now)

    def grant(self, waiting: QueuedRequest, tokens: float, now: float) -> None:
        """Charge an assigned request with its estimated tokens."""
        self._levels[waiting.priority].grant(waiting.tenant, tokens, now)

    def correct(self, priority: int, tenant: str, tokens: float) -> None:
        """Correct the charge of an assigned request by the difference in tokens."""
        if priority in self._levels:
            self._levels[priority].correct(tenant, tokens)

    def largest_tenant(self) -> tuple[int, QueuedRequest]:
        """Return the number of requests of the tenant with most of them, and its newest one."""
        count: dict[str, int] = {}
        for level in self._levels.values():
            for tenant, of_tenant in level.by_tenant.items():
                count[tenant] = count.get(tenant, 0) + len(of_tenant)
        most = max(count, key=lambda tenant: count[tenant])
        of_most = (w for w in reversed(self._waiting.values()) if w.tenant == most)
        return count[most], next(of_most)

    def of(self, tenant: str) -> int:
        """Return the number of queued requests of this tenant."""
        return sum(len(level.by_tenant.get(tenant, ())) for level in self._levels.values())
