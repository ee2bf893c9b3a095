"""HTTP connections of the server: timeouts, limits, and error responses.

aiohttp reads and writes. A connection is closed after a time if its request's head or body is not
completed, if its client does not read the response, or if it is idle; so that it does not keep
its slot, its memory and its file descriptor. `workers.connection_timeouts` measures this.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from swapd.domain.settings import BodyTimeoutError, ClientTimeouts
from swapd.http import errors
from workers.connection_timeouts import (
    ConnectionLimits,
    ConnectionMonitor,
    ConnectionTimeout,
    current_request,
    waits_for_request,
)

MIN_BODY_RATE = 16384
"""Smallest average rate of a body in bytes per second, once its timeout has passed."""
MAX_HEADERS = 128
"""Headers of a request."""
MAX_HEADER_BYTES = 16384
"""Bytes of a request line or header."""
WRITE_BUFFER_BYTES = 16 * 1024
"""Bytes of a response to buffer for the client before the worker has to wait."""
LINGERING_TIME = 2.0
"""Seconds for which a rejected body is read and discarded, so that the client gets the error."""


class ConnectionLimiter:
    """Limit of the connections of a listener. Above it, the longest idle connection is closed."""

    def __init__(self, limit: int, log: logging.Logger) -> None:
        self.limit = limit
        self.log = log
        self._connections: dict[HttpConnection, None] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, new: HttpConnection) -> bool:
        """Add a connection. False if the limit is reached and no connection is idle."""
        if len(self._connections) >= self.limit:
            idle = next((known for known in self._connections if known.is_idle), None)
            if idle is None:
                return False
            idle.abort()
        self._connections[new] = None
        return True

    def touch(self, connection: HttpConnection) -> None:
        """Mark a connection as the most recently used."""
        if self._connections.pop(connection, connection) is None:
            self._connections[connection] = None

    def remove(self, connection: HttpConnection) -> None:
        """Remove a closed connection."""
        self._connections.pop(connection, None)


class HttpConnection(web.RequestHandler):
    """aiohttp's connection with timeouts, and with errors in the format of OpenAI's API."""

    __slots__ = ("_client", "_limiter", "_limits", "_monitor", "_timer")

    def __init__(
        self,
        manager: web.Server,
        limiter: ConnectionLimiter,
        limits: ConnectionLimits,
        idle_timeout: float,
        logger: logging.Logger,
    ) -> None:
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=idle_timeout,
            access_log=None,  # type: ignore[arg-type]  # None is aiohttp's value for no log.
            logger=logger,
            lingering_time=LINGERING_TIME,
            # aiohttp accepts truncated compressed bodies as complete.
            auto_decompress=False,
            max_headers=MAX_HEADERS,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        self._limiter = limiter
        self._limits = limits
        self._monitor = ConnectionMonitor(self, limits)
        self._client: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    # -- events of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept a connection, or respond 503 and close it if there are too many."""
        client = cast(asyncio.Transport, transport)
        if not self._limiter.add(self):
            client.write(_bare_response(503, "there are too many connections", "overloaded"))
            client.close()
            # aiohttp has not seen this connection, so it must not see its end either.
            return
        super().connection_made(transport)
        self._client = client
        client.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        self._schedule_check()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Release the connection's slot and timer."""
        self._limiter.remove(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._client is not None:
            self._client = None
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes of a request."""
        if self._client is None:
            return
        super().data_received(data)
        self._monitor.data_received()

    def eof_received(self) -> None:
        """Close the connection: a half-closed one looks the same as one whose client has gone."""

    def abort(self) -> None:
        """Close the connection at once."""
        if self._client is not None:
            self._client.abort()

    @property
    def is_idle(self) -> bool:
        """True if no request is in progress."""
        return waits_for_request(self)

    # -- timeouts

    def _schedule_check(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._limits.check_interval, self._check)

    def _check(self) -> None:
        client = self._client
        if client is None:
            return
        self._schedule_check()
        expired = self._monitor.check(asyncio.get_running_loop().time())
        request = current_request(self)
        if expired is ConnectionTimeout.RESPONSE:
            self._limiter.log.info("closed a connection whose client did not read its response")
            client.abort()
        elif expired is ConnectionTimeout.HEAD:
            client.write(
                _bare_response(408, "the request's head was not received in time", "timeout")
            )
            self.force_close()
        elif request is not None:
            self._limiter.touch(self)
            if expired is ConnectionTimeout.BODY:
                request.content.set_exception(
                    BodyTimeoutError("the request's body was not received in time")
                )

    # -- error responses

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the response to invalid HTTP or to an internal error."""
        if status >= 500:
            super().handle_error(request, status, exc, message)
            response = errors.error_response(
                500, "internal error in swapd; see its log", "server_error"
            )
        elif request.writer.output_size > 0:
            raise ConnectionError("the response has already started")
        else:
            response = _invalid_request(exc)
        response.force_close()
        return response


def _invalid_request(error: BaseException | None) -> web.Response:
    if isinstance(error, LineTooLong):
        return errors.error_response(
            431, "a line of the request's head is too long", code="too_large"
        )
    message = error.message if isinstance(error, BadHttpMessage) else ""
    # The rest of aiohttp's message quotes the request, which may contain a key.
    reason = message.strip().partition("\n")[0].partition(":")[0].rstrip(".")
    if reason == "Too many headers received":
        return errors.error_response(431, "the request has too many headers", code="too_large")
    return errors.error_response(400, f"the request is not valid HTTP{': ' * bool(reason)}{reason}")


def _bare_response(status: int, message: str, code: str) -> bytes:
    """Return a whole response, for a connection without a parsed request."""
    kind = "overloaded_error" if status == 503 else "invalid_request_error"
    body = errors.error_body(message, kind, code)
    reason = {408: "Request Timeout", 503: "Service Unavailable"}[status]
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def factory(
    server: web.Server,
    limiter: ConnectionLimiter,
    timeouts: ClientTimeouts,
    logger: logging.Logger,
) -> Any:
    """Return the protocol factory of a server."""
    limits = ConnectionLimits(
        response=timeouts.progress,
        body=timeouts.progress,
        body_rate=MIN_BODY_RATE,
        head=timeouts.head,
        check_interval=timeouts.check_interval,
        bounded_buffer=True,
    )
    return lambda: HttpConnection(server, limiter, limits, timeouts.idle, logger)
