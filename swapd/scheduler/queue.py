"""Who of those that wait for one model is next: by priority, then by tokens asked for, then by age.

A step of priority counts as `STEP` seconds of waiting. So a request is passed only by those that
arrive within that time after it, for each step that they stand above it, and nobody waits for
ever. Among equals in priority tenants share by tokens. What counts is what a tenant was served, and
a part of what it waits for, up to `AHEAD`: so who asks for all there is stands behind those who ask
for little, and where all ask for much they are served alike. Those who differ by less than `SLACK`
are served by age: an order among them would only make some wait longer. A tenant that was away
comes back with what it was served then, but not with more than `CREDIT` less than who was served
last: absence earns no more than that. One that waits and was served nothing for `PASSED` seconds is
next, whatever it asks for. Within a tenant the order is that of arrival.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from swapd.domain.events import RequestId

STEP = 30.0
MOST = 10
"""Priorities beyond this are cut off, so that waits are bounded."""
CREDIT = 16_000.0
"""Tokens that a tenant may be served before others when it was served less than they."""
WAITED_FOR = 0.25
"""How much a token counts that a tenant waits for, against one that it was served."""
AHEAD = 100_000.0
"""As how many tokens what a tenant waits for counts at most."""
SLACK = 1
"""Requests of the usual length, for each slot, that make no difference between tenants."""
PASSED = 120.0
"""Seconds for which a tenant that waits may be served nothing while others are."""
Rank: TypeAlias = tuple[float, int]
"""Arrival, brought forward by priority; then the place in the order of arrival."""


@dataclass(slots=True)
class QueuedRequest:
    """A request that has no grant yet. `place` orders all requests by arrival."""

    request: RequestId
    place: int
    needs_slot: bool
    since: float
    tenant: str = ""
    priority: int = 0
    keep_alive: float | None = None
    fingerprint: str = ""
    losses: int = 0
    """Workers that ended under it."""
    kills: int = 0
    """Those of them that somebody killed."""
    falls: int = 0
    """Those of them of whose end it may be the cause."""
    rank: Rank = field(init=False)

    def __post_init__(self) -> None:
        if not -MOST <= self.priority <= MOST:
            self.priority = max(-MOST, min(self.priority, MOST))
        self.rank = (self.since - STEP * self.priority, self.place)

    @property
    def alone(self) -> bool:
        """Whether it is to be served by a worker that serves nothing else (see `suspects`)."""
        return self.falls > 1 and self.needs_slot


def put(line: dict[RequestId, QueuedRequest], waiting: QueuedRequest) -> None:
    """Put a request into a line: at its end, or where it was if it comes back."""
    line[waiting.request] = waiting
    if waiting.losses:
        for later in [w for w in line.values() if w.place > waiting.place]:
            line[later.request] = line.pop(later.request)


class PriorityLevel:
    """Those of one priority: a line for each tenant, and what each was served lately."""

    __slots__ = ("_granted", "_served", "_since", "_usual", "lines", "waiting")

    def __init__(self, usual: float) -> None:
        self._usual = usual
        """Tokens of a request, on the average."""
        self._granted: dict[str, float] = {}
        """When each tenant was granted a request last."""
        self.waiting: dict[RequestId, QueuedRequest] = {}
        self.lines: dict[str, dict[RequestId, QueuedRequest]] = {}
        self._served: dict[str, float] = {}
        self._since = 0.0
        """What the tenant that was granted last had been served before."""

    def add(self, waiting: QueuedRequest) -> None:
        put(self.waiting, waiting)
        line = self.lines.get(waiting.tenant)
        if line is None:
            line = self.lines[waiting.tenant] = {}
            self._lift(waiting.tenant)
        put(line, waiting)

    def _lift(self, tenant: str) -> None:
        served = self._served
        served[tenant] = max(served.get(tenant, 0.0), self._since - CREDIT)
        if len(served) > 2 * len(self.lines) + 64:
            # Who is away and below the rest would be lifted anyway.
            kept = {t: s for t, s in served.items() if t in self.lines or s > self._since - CREDIT}
            self._served = kept
            self._granted = {t: when for t, when in self._granted.items() if t in kept}

    def remove(self, waiting: QueuedRequest) -> None:
        del self.waiting[waiting.request]
        line = self.lines[waiting.tenant]
        del line[waiting.request]
        if not line:
            del self.lines[waiting.tenant]

    def oldest(self) -> QueuedRequest:
        return next(iter(self.waiting.values()))

    def next(self, slots: int, now: float) -> QueuedRequest:
        """The oldest of those tenants that asked for least, or were passed for long."""
        if len(self.lines) == 1:
            return self.oldest()
        served, usual, heads = self._served, self._usual, list[tuple[float, QueuedRequest]]()
        each, long_ago, least = WAITED_FOR * usual, now - PASSED, math.inf
        for tenant, line in self.lines.items():
            head = next(iter(line.values()))
            if head.since < long_ago and self._granted.get(tenant, -math.inf) < long_ago:
                asked = -math.inf
            else:
                asked = served[tenant] + min(each * len(line), AHEAD)
            least = min(least, asked)
            heads.append((asked, head))
        most, found = least + SLACK * slots * usual, None
        for asked, head in heads:
            if asked <= most and (found is None or head.place < found.place):
                found = head
        assert found is not None
        return found

    def grant(self, tenant: str, tokens: float, now: float) -> None:
        """A request of this tenant is granted, and will be served so many tokens, as it seems."""
        self._since = max(self._since, self._served[tenant])
        self._served[tenant] += tokens
        self._granted[tenant] = now
        self._usual = tokens or self._usual

    def correct(self, tenant: str, tokens: float) -> None:
        """What a granted request was served differs from the estimate by so many tokens."""
        if tenant in self._served:
            # It may have been granted before anybody waited, and not be counted here.
            self._served[tenant] = max(0.0, self._served[tenant] + tokens)


class RequestQueue:
    """All that wait for one model. Adding, taking out and picking cost nothing for the others
    that wait, and little for each tenant and priority among them."""

    __slots__ = ("_levels", "_usual", "_waiting", "guests")

    def __init__(self, usual: float) -> None:
        self._usual = usual
        """Tokens of a request, on the average, as far as it is known yet."""
        self._waiting: dict[RequestId, QueuedRequest] = {}
        self.guests = 0
        """How many of them need no slot."""
        self._levels: dict[int, PriorityLevel] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[RequestId]:
        return iter(self._waiting)

    def add(self, waiting: QueuedRequest) -> None:
        put(self._waiting, waiting)
        self.guests += not waiting.needs_slot
        level = self._levels.get(waiting.priority)
        if level is None:
            level = self._levels[waiting.priority] = PriorityLevel(self._usual)
        level.add(waiting)

    def remove(self, request: RequestId) -> QueuedRequest:
        waiting = self._waiting.pop(request)
        self.guests -= not waiting.needs_slot
        level = self._levels[waiting.priority]
        level.remove(waiting)
        if not level.waiting:
            # When nobody waits, nobody is kept waiting by what others were served before.
            del self._levels[waiting.priority]
        return waiting

    def head(self) -> QueuedRequest:
        """The one of first rank: by its age the model's claim to room is judged."""
        if len(self._levels) == 1:
            return next(iter(self._waiting.values()))
        return min((level.oldest() for level in self._levels.values()), key=lambda w: w.rank)

    def next(self, slots: int, now: float) -> QueuedRequest:
        """The one to be granted next by a worker with so many slots."""
        return self._levels[self.head().priority].next(slots, now)

    def grant(self, waiting: QueuedRequest, tokens: float, now: float) -> None:
        """Count a granted request with the tokens that it is likely to take."""
        self._levels[waiting.priority].grant(waiting.tenant, tokens, now)

    def correct(self, priority: int, tenant: str, tokens: float) -> None:
        """Count what is known now of a granted request."""
        if priority in self._levels:
            self._levels[priority].correct(tenant, tokens)

    def greediest(self) -> tuple[int, QueuedRequest]:
        """How many requests the tenant with most of them has here, and its newest."""
        count: dict[str, int] = {}
        for level in self._levels.values():
            for tenant, line in level.lines.items():
                count[tenant] = count.get(tenant, 0) + len(line)
        most = max(count, key=lambda tenant: count[tenant])
        of_most = (w for w in reversed(self._waiting.values()) if w.tenant == most)
        return count[most], next(of_most)

    def of(self, tenant: str) -> int:
        """How many requests of this tenant wait here."""
        lines = (level.lines.get(tenant, ()) for level in self._levels.values())
        return sum(map(len, lines))
