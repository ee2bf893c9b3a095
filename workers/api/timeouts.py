"""How long a connection may keep the worker waiting, and what happens then: it is closed.

An answer that nobody reads is kept, whole if need be, and is no longer than the context; its slot
is free when it is computed. So a slow reader costs a little memory, and nobody's time. But what
does not move at all goes, and so does who never comes to the end of a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class ParserLimits:
    """Seconds."""

    unread: float = 30.0
    """For a client to read anything of what there is for it."""
    body: float = 120.0
    """For a request's body to come."""
    first: float = 30.0
    """For a connection's first request to begin."""
    look: float = 10.0
    """Between two looks."""


class BodyStream(Protocol):
    """A request's body, on its way."""

    def is_eof(self) -> bool:
        """Whether all of it has come."""


class WorkerRequest(Protocol):
    """What of a request matters here."""

    @property
    def content(self) -> BodyStream:
        """Its body."""

    @property
    def transport(self) -> asyncio.Transport | None:
        """Its connection."""


class WorkerConnection(Protocol):
    """What aiohttp's server knows of a connection."""

    @property
    def transport(self) -> asyncio.BaseTransport | None:
        """None: it is closed."""


class Connections(Protocol):
    """aiohttp's server."""

    @property
    def connections(self) -> Iterable[WorkerConnection]:
        """Those that are open."""


Mark = tuple[str, int]
"""What a connection is waited for, and how far that is."""


class ConnectionTimeouts:
    """Looks at all connections from time to time."""

    def __init__(self, limits: ParserLimits) -> None:
        self._limits = limits
        self._serving: dict[asyncio.BaseTransport, WorkerRequest] = {}
        self._known: dict[asyncio.BaseTransport, tuple[Mark, float]] = {}
        self._greeted: set[asyncio.BaseTransport] = set()
        """Those that have asked something."""

    def watch(self, server: Connections) -> None:
        """From now on; on the loop's thread."""
        self._look(server)

    def begin(self, request: WorkerRequest) -> None:
        """A request has come, its body maybe not."""
        if request.transport is not None:
            self._serving[request.transport] = request
            self._greeted.add(request.transport)

    def end(self, request: WorkerRequest) -> None:
        """It has its answer."""
        if request.transport is not None:
            self._serving.pop(request.transport, None)

    def _look(self, server: Connections) -> None:
        loop = asyncio.get_running_loop()
        now, known = loop.time(), dict[asyncio.BaseTransport, tuple[Mark, float]]()
        for connection in server.connections:
            transport = connection.transport
            if not isinstance(transport, asyncio.Transport):
                continue
            mark = self._mark(transport)
            if mark is None:
                continue
            before, since = self._known.get(transport, (None, now))
            known[transport] = mark, since if before == mark else now
            if now - known[transport][1] >= getattr(self._limits, mark[0]):
                transport.abort()
        self._known = known
        there = {connection.transport for connection in server.connections}
        self._greeted &= there
        self._serving = {one: request for one, request in self._serving.items() if one in there}
        loop.call_later(self._limits.look, self._look, server)

    def _mark(self, transport: asyncio.Transport) -> Mark | None:
        """None: it is the worker that is waited for, or nobody is."""
        unread = transport.get_write_buffer_size()
        if unread:
            return "unread", unread
        if transport not in self._greeted:
            return "first", 0
        request = self._serving.get(transport)
        return ("body", 0) if request is not None and not request.content.is_eof() else None
