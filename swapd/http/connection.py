"""One HTTP connection, and how long it may keep us waiting.

aiohttp reads and writes; this adds patience and its end. A head that does not come to its end, a
body that trickles, a client that takes nothing of its answer, a connection that nobody uses: each
is let go after a time, and so are its slot, its memory and its descriptor. Nothing of this is done
for each chunk; every few seconds a connection looks at itself.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from swapd.domain.settings import BodyTimeoutError, ClientTimeouts
from swapd.http import errors

MEAN_BYTES = 16384
"""Bytes a second that a body has to bring on the average, beyond what patience allows."""
LARGEST_HEADERS = 128
LARGEST_HEADER = 16384
UNTAKEN_BYTES = 16 * 1024
"""Of an answer, which are kept here for its client before the worker has to wait."""
LINGERING = 2.0
"""Seconds for which a body that nobody wants is read away, for its sender to hear why."""
NOTHING = (0, 0.0)


class ConnectionLimiter:
    """All connections of a door. When they are too many, the one that is idle longest goes."""

    def __init__(self, most: int, log: logging.Logger) -> None:
        self.most = most
        self.log = log
        self._members: dict[HttpConnection, None] = {}

    def __len__(self) -> int:
        return len(self._members)

    def enter(self, newcomer: HttpConnection) -> bool:
        """Take one in; False when there is no room for it and nobody who could go."""
        if len(self._members) >= self.most:
            idle = next((one for one in self._members if one.is_idle), None)
            if idle is None:
                return False
            idle.give_up()
        self._members[newcomer] = None
        return True

    def stir(self, one: HttpConnection) -> None:
        """It has done something: others are idle longer now."""
        if self._members.pop(one, one) is None:
            self._members[one] = None

    def leave(self, one: HttpConnection) -> None:
        self._members.pop(one, None)


class HttpConnection(web.RequestHandler):
    """aiohttp's connection with an eye on the time, and with errors in our shape."""

    __slots__ = (
        "_alarm",
        "_body",
        "_crowd",
        "_head_since",
        "_patience",
        "_request_since",
        "_taken",
        "_wire",
    )

    def __init__(
        self,
        manager: web.Server,
        crowd: ConnectionLimiter,
        patience: ClientTimeouts,
        logger: logging.Logger,
    ) -> None:
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=patience.idle,
            access_log=None,  # type: ignore[arg-type]  # None is how aiohttp wants to hear "none".
            logger=logger,
            lingering_time=LINGERING,
            auto_decompress=False,  # it takes what breaks off for whole: see `bodies`
            max_headers=LARGEST_HEADERS,
            max_line_size=LARGEST_HEADER,
            max_field_size=LARGEST_HEADER,
        )
        self._crowd = crowd
        self._patience = patience
        self._wire: asyncio.Transport | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._head_since: float | None = None
        self._request_since: tuple[object, float] = (None, 0.0)
        self._body = NOTHING
        """Bytes of the present body that have come, and when there were as many for the first
        time."""
        self._taken: tuple[object, int, float] = (None, 0, 0.0)
        """Bytes of the present answer that the client's side has taken, of which request, and
        when there were as many for the first time."""

    # -- what happens to it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody has come; with too many here already, he is told so and goes."""
        wire = cast(asyncio.Transport, transport)
        if not self._crowd.enter(self):
            wire.write(_bare(503, "there are too many connections", "overloaded"))
            wire.close()
            # aiohttp has not seen it, so it need not see its end.
            return
        super().connection_made(transport)
        self._wire = wire
        wire.set_write_buffer_limits(UNTAKEN_BYTES)
        self._look_later()

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is over."""
        self._crowd.leave(self)
        if self._alarm is not None:
            self._alarm.cancel()
        if self._wire is not None:
            self._wire = None
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; those of a head must make a whole one in time."""
        if self._wire is None:
            return
        super().data_received(data)
        # Before anything has been heard, aiohttp may not have begun to wait.
        if self._waits_for_head or self._request_count == 0:
            if self._head_since is None:
                self._head_since = self._loop.time()
        else:
            self._head_since = None

    def eof_received(self) -> None:
        """The client sends no more. It is taken to be gone: one that is looks the same."""

    def give_up(self) -> None:
        """Others need its place."""
        if self._wire is not None:
            self._wire.abort()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way on it."""
        return self._waits_for_head

    @property
    def _waits_for_head(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    # -- its look at itself

    def _look_later(self) -> None:
        self._alarm = self._loop.call_later(self._patience.look_every, self._look)

    def _look(self) -> None:
        wire, now = self._wire, self._loop.time()
        if wire is None:
            return
        self._look_later()
        if self._takes_nothing(wire, now):
            self._crowd.log.info("a client took nothing of its answer for too long: it was let go")
            wire.abort()
        elif self._head_since is not None and now - self._head_since >= self._patience.head:
            self._head_since = None
            wire.write(_bare(408, "the request's head did not come in time", "timeout"))
            self.force_close()
        elif (request := self._current_request) is not None:
            self._crowd.stir(self)
            self._look_at_body(request, now)

    def _takes_nothing(self, wire: asyncio.Transport, now: float) -> bool:
        unsent, request = wire.get_write_buffer_size(), self._current_request
        if not unsent or not (self.writing_paused or wire.is_closing()):
            self._taken = (None, 0, now)
            return False
        # What waits shrinks and grows again under a reader that takes its time; this only grows.
        taken = (request.writer.output_size if request is not None else 0) - unsent
        if (request, taken) != self._taken[:2]:
            self._taken = (request, taken, now)
        return now - self._taken[2] >= self._patience.silence

    def _look_at_body(self, request: web.BaseRequest, now: float) -> None:
        content = request.content
        if content.is_eof() or content.exception() is not None:
            return
        if self._request_since[0] is not content:
            self._request_since, self._body = (content, now), (content.total_bytes, now)
        came = content.total_bytes
        if came > self._body[0]:
            self._body = (came, now)
        silence = self._patience.silence
        allowed = silence + came / MEAN_BYTES
        if now - self._body[1] >= silence or now - self._request_since[1] >= allowed:
            content.set_exception(BodyTimeoutError("the request's body did not come in time"))

    # -- what it says of bad requests

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no proper HTTP, and what went wrong in here, in OpenAI's shape."""
        if status >= 500:
            super().handle_error(request, status, exc, message)
            response = errors.error_response(
                500, "something went wrong inside swapd; its log says what", "server_error"
            )
        elif request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        else:
            response = _malformed(exc)
        response.force_close()
        return response


def _malformed(error: BaseException | None) -> web.Response:
    if isinstance(error, LineTooLong):
        return errors.error_response(
            431, "a line of the request's head is too long", code="too_large"
        )
    said = error.message if isinstance(error, BadHttpMessage) else ""
    # What follows the first line quotes the request, in which there may be a key.
    told = said.strip().partition("\n")[0].partition(":")[0].rstrip(".")
    if told == "Too many headers received":
        return errors.error_response(431, "the request has too many headers", code="too_large")
    return errors.error_response(400, f"the request is no proper HTTP{': ' * bool(told)}{told}")


def _bare(status: int, message: str, code: str) -> bytes:
    """A whole answer for where there is no request to answer."""
    kind = "overloaded_error" if status == 503 else "invalid_request_error"
    body = errors.error_body(message, kind, code)
    reason = {408: "Request Timeout", 503: "Service Unavailable"}[status]
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def factory(
    server: web.Server, crowd: ConnectionLimiter, patience: ClientTimeouts, logger: logging.Logger
) -> Any:
    """Makes the connections of a server."""
    return lambda: HttpConnection(server, crowd, patience, logger)
