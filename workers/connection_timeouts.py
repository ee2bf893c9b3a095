"""Timeouts of aiohttp server connections, for the proxy and for the workers.

aiohttp closes idle connections by itself, but waits without limit for the rest of a request's
head or body, and for a client that does not read its response. A `ConnectionMonitor` notices such
a connection. It costs nothing per chunk: every few seconds it compares the progress made with
that at its last check.

Some of the progress is visible only in private attributes of aiohttp. All of them are read here,
and named in `PRIVATE_ATTRIBUTES` for the test that checks that they still exist.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

PRIVATE_ATTRIBUTES = ("_current_request", "_request_count", "_waiter")
"""Private attributes of `web.RequestHandler` that this module reads."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of a connection, in seconds; the defaults are those of a worker."""

    response: float = 30.0
    """Longest time without progress in reading a response."""
    body: float = 120.0
    """Longest time without progress in sending a body, and for a whole body without bytes."""
    body_rate: float = math.inf
    """Bytes per second: each such number of received bytes allows the body another second."""
    head: float = 30.0
    """Longest time for a request's head."""
    check_interval: float = 10.0
    """Time between two checks of a connection."""
    bounded_buffer: bool = False
    """True if the response is written no faster than it is read.

    Then the client is waited for only while the write buffer is full. If false, responses are
    buffered whole; a response that is still being written counts as progress.
    """


class ConnectionTimeout(enum.Enum):
    """Part of an exchange that the client did not complete in time."""

    HEAD = "head"
    BODY = "body"
    RESPONSE = "response"


def waits_for_request(connection: web.RequestHandler) -> bool:
    """True if no request is in progress and aiohttp waits for the next one."""
    waiter = connection._waiter
    return waiter is not None and not waiter.done()


def current_request(connection: web.RequestHandler) -> web.BaseRequest | None:
    """Return the request whose handler runs, or None."""
    return connection._current_request


class ConnectionMonitor:
    """Progress of one connection, as of the last check."""

    __slots__ = ("_body", "_body_start", "_connection", "_head_start", "_limits", "_response")

    def __init__(self, connection: web.RequestHandler, limits: ConnectionLimits) -> None:
        self._connection = connection
        self._limits = limits
        self._head_start: tuple[int, float] | None = None
        """Number of requests before this head, and the time of its first byte."""
        self._body_start: tuple[object, float] = (None, 0.0)
        """Body stream of the current request, and the time of its first check."""
        self._body = (0, 0.0)
        """Received bytes of the body, and the time of the first check with that number."""
        self._response: tuple[object, int, float] = (None, 0, 0.0)
        """Request, progress of its response, and the time of the first check with that progress."""

    def start_head(self, now: float) -> None:
        """Start the timeout of the next request's head, if it does not run yet."""
        if self._head_start is None:
            self._head_start = (self._connection._request_count, now)

    def data_received(self) -> None:
        """Start or end the timeout of a head; to be called after aiohttp has parsed the bytes."""
        connection = self._connection
        # Before the first request, aiohttp may not have started to wait.
        if waits_for_request(connection) or connection._request_count == 0:
            if self._head_start is None:
                self.start_head(asyncio.get_running_loop().time())
        else:
            self._head_start = None

    def check(self, now: float) -> ConnectionTimeout | None:
        """Return the timeout that has expired, or None. A head's is returned once."""
        transport = self._connection.transport
        if transport is None:
            return None
        if self._response_expired(transport, now):
            return ConnectionTimeout.RESPONSE
        if self._head_expired(now):
            self._head_start = None
            return ConnectionTimeout.HEAD
        request = self._connection._current_request
        if request is not None and self._body_expired(request, now):
            return ConnectionTimeout.BODY
        return None

    def _response_expired(self, transport: asyncio.Transport, now: float) -> bool:
        unsent, request = transport.get_write_buffer_size(), self._connection._current_request
        bounded = self._limits.bounded_buffer
        is_waiting = not bounded or self._connection.writing_paused or transport.is_closing()
        if not unsent or not is_waiting:
            self._response = (None, 0, now)
            return False
        progress = unsent
        if bounded:
            # The buffer shrinks and grows again under a slow reader; the bytes sent only grow.
            progress = (request.writer.output_size if request is not None else 0) - unsent
        if (request, progress) != self._response[:2]:
            self._response = (request, progress, now)
        return now - self._response[2] >= self._limits.response

    def _head_expired(self, now: float) -> bool:
        if self._head_start is None:
            return False
        requests, start = self._head_start
        if self._connection._request_count != requests:
            self._head_start = None
            return False
        return now - start >= self._limits.head

    def _body_expired(self, request: web.BaseRequest, now: float) -> bool:
        content = request.content
        if content.is_eof() or content.exception() is not None:
            return False
        received = content.total_bytes
        if self._body_start[0] is not content:
            self._body_start, self._body = (content, now), (received, now)
        if received > self._body[0]:
            self._body = (received, now)
        limit = self._limits.body
        allowed = limit + received / self._limits.body_rate
        return now - self._body[1] >= limit or now - self._body_start[1] >= allowed


class Connections(Protocol):
    """Server with open connections, such as `web.Server`."""

    @property
    def connections(self) -> Iterable[web.RequestHandler]:
        """Open connections."""


class ConnectionTimeouts:
    """Periodic check of all connections of a server, which aborts those that time out.

    For servers whose connections are made by aiohttp. The head's timeout applies to a
    connection's first request only: a client may keep its connection between requests.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._monitors: dict[web.RequestHandler, ConnectionMonitor] = {}

    def watch(self, server: Connections) -> None:
        """Check the connections now and from now on; to be called on the event loop."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        monitors: dict[web.RequestHandler, ConnectionMonitor] = {}
        for connection in server.connections:
            monitor = self._monitors.get(connection)
            if monitor is None:
                monitor = ConnectionMonitor(connection, self._limits)
                if connection._request_count == 0:
                    monitor.start_head(now)
            monitors[connection] = monitor
            if monitor.check(now) is not None and connection.transport is not None:
                connection.transport.abort()
        self._monitors = monitors
        loop.call_later(self._limits.check_interval, self.watch, server)
