"""One request through to a worker and its answer back, streamed as it comes."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeAlias

import aiohttp
import msgspec
from aiohttp import AddrInfoType, web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from swapd.process.liveness import Liveness
from swapd.proxy.sse import EventIds
from swapd.system.aio import now
from workers.protocol import DRAINING_HEADER, RESUMABLE_HEADER, RESUME_PREFIX

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that speak of one connection only (RFC 9110, section 7.6.1)."""

BODILESS = frozenset({204, 304})
"""Statuses of answers that have no body."""

CONNECT_WITHIN = 5.0
KEPT_FOR = 3.0
"""An idle connection is closed before a worker would do so (llama-server: 5 s): a request sent
into a connection that the other end is just closing can't be told from one that was lost."""
RECEIVED_BYTES = 64 * 1024
READ_AHEAD_BYTES = 16 * 1024
"""Of an answer, for a client that does not keep up; as small pieces they take several times as
much, and there may be hundreds of such clients."""
LONGEST_LINE = 65536
"""Bytes that a line of the head of a worker's answer may have."""
FAILURES = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
NEVER = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_WITHIN)
"""An answer may take as long as it takes: a long prefill is not a fault."""


SWITCHING = 101
EVENTS = "text/event-stream"
DONE = b"data: [DONE]\n\n"
"""What a whole stream ends with, where it ends with anything."""
LONGEST_REASON = 65536
TAIL = 2048
"""Bytes at the end of an answer in which its usage stands."""
TOTAL = re.compile(rb'"total_tokens":\s*(\d{1,12})')
PROMPT_N = re.compile(rb'"prompt_n":\s*(\d{1,12})')
PREDICTED_N = re.compile(rb'"predicted_n":\s*(\d{1,12})')


ExitReason: TypeAlias = Callable[[float], Awaitable[str]]
"""Waits so many seconds for a worker's end and says how it was; empty if it lives on."""
CLOSED_WITHIN = 0.1
"""Seconds in which a worker that ended with its connection is found to have done so."""
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
"""How an event of a stream may end."""


class Fault(msgspec.Struct):
    """An error as OpenAI has it."""

    message: str


class Said(msgspec.Struct):
    """The body of an answer that is an error."""

    error: Fault


class WorkerFailedError(Exception):
    """The worker's answer did not come, or broke off."""


class WorkerDrainingError(WorkerFailedError):
    """The worker takes no requests; one of ours then ends when it has done what it has."""


def end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """The headers that are meant for the other end: hop-by-hop ones are left out."""
    named = ",".join(headers.getall("Connection", ())).split(",")
    drop = HOP_BY_HOP | {name.strip().lower() for name in named}
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in drop)


def new_session() -> aiohttp.ClientSession:
    """A client for all workers: no limit but the grants, nothing unpacked, nothing remembered."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEPT_FOR, socket_factory=_with_small_buffer
        ),
        timeout=NEVER,
        auto_decompress=False,
        read_bufsize=READ_AHEAD_BYTES,
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=LONGEST_LINE,
        max_field_size=LONGEST_LINE,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    )


def _with_small_buffer(address: AddrInfoType) -> socket.socket:
    """A socket that takes no megabytes from a worker ahead of a slow reader."""
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED_BYTES)
    sock.setblocking(False)
    return sock


class Exchange:
    """One request through to a worker, or to several if the first ones end under it.

    `response` is the answer to the client as far as it has been begun.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        request: web.Request,
        path: str,
        body: bytes,
        added: Mapping[str, str],
        withheld: Iterable[str] = (),
    ) -> None:
        self.response: web.StreamResponse | None = None
        self._session = session
        self._request = request
        self._path = path
        self._body = body
        self._added = added
        """Headers that the answer gets on top."""
        self._withheld = withheld
        """Headers of the request that are no business of the worker's."""
        self._events: EventIds | None = None
        self._tail = b""

    @property
    def goes_on(self) -> bool:
        """Whether another worker can serve the request so that the client notices a pause at most.

        It can as long as nothing of the answer's body is out, and in streams with ids.
        """
        if self.response is None or (self._events and self._events.can_resume):
            return True
        return not self._tail and self.response.content_type == EVENTS

    @property
    def has_begun(self) -> bool:
        """Whether the client has events that the next worker is not to send again."""
        return self._events is not None and bool(self._events.ids)

    @property
    def is_within_event(self) -> bool:
        """Whether the client has a part of an event without its end."""
        return bool(self._tail) and not self._tail.endswith(_ENDS)

    async def through(
        self, base_url: str, pulse: Liveness, resumable: bool, fate: ExitReason
    ) -> int:
        """Send the request to a worker and stream the answer to the client as it comes.

        What was begun is gone on with; a worker that is `resumable` is asked for what that needs.
        Returns the tokens that the answer's end tells of. Raises WorkerFailedError when the
        worker fails, ConnectionResetError when the client has gone. However it ends, the
        connection to the worker is closed unless its answer is complete, so that the worker
        stops working on it.
        """
        path, body, headers = self._path, self._body, self._headers(resumable)
        if self._events is not None and self._events.ids:
            path, body = f"{RESUME_PREFIX}{path}", self._events.resumption(body)
        elif self._events is not None:
            self._events = EventIds()
        try:
            answer = await self._session.request(
                self._request.method,
                URL(base_url + path, encoded=True),
                data=body or None,
                headers=headers,
                allow_redirects=False,
            )
        except aiohttp.ClientConnectorError as error:
            raise WorkerDrainingError(told(error)) from error
        except FAILURES as error:
            raise WorkerFailedError(told(error)) from error
        async with answer:
            if DRAINING_HEADER in answer.headers:
                raise WorkerDrainingError(await _reason(answer))
            if answer.status == SWITCHING:
                # Nobody has asked for it; there is no answer behind it.
                answer.close()
                raise WorkerFailedError(f"it answered with status {SWITCHING}")
            response = await self._prepared(answer, resumable)
            await self._relay(answer, response, pulse)
            if _ends_by_closing(answer) and (reason := await fate(CLOSED_WITHIN)):
                raise WorkerFailedError(reason)
            await response.write_eof()
        return tokens_told(self._tail)

    def _headers(self, resumable: bool) -> CIMultiDict[str]:
        headers = end_to_end(self._request.headers)
        # The body was unpacked on its way in, if it was packed.
        for name in (
            "Host",
            "Content-Length",
            "Expect",
            "Content-Encoding",
            # Both were judged at our door, and speak of it.
            "Origin",
            "Sec-Fetch-Site",
            RESUMABLE_HEADER,
            *self._withheld,
        ):
            headers.popall(name, None)
        if resumable:
            headers[RESUMABLE_HEADER] = "1"
        return headers

    async def _prepared(
        self, answer: aiohttp.ClientResponse, resumable: bool
    ) -> web.StreamResponse:
        """The response to the client, begun now if it is not yet."""
        events = answer.content_type == EVENTS
        if self.response is not None:
            if answer.status != self.response.status or not events:
                raise WorkerFailedError(await _reason(answer))
            if resumable and self._events is None:
                self._events = EventIds()
            return self.response
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        response.headers.extend(end_to_end(answer.headers))
        response.headers.update(self._added)
        await response.prepare(self._request)
        self.response = response
        if resumable and events and "Content-Length" not in answer.headers:
            self._events = EventIds()
        return response

    async def _relay(
        self, answer: aiohttp.ClientResponse, response: web.StreamResponse, pulse: Liveness
    ) -> None:
        events, writer = self._events, self._request.writer
        while chunk := await self._next_chunk(answer):
            pulse.flowed = now()
            if events is not None and not (chunk := events.take(chunk)):
                continue
            pulse.held += 1
            try:
                await response.write(chunk)
                # That waits for a client only now and then, when 64 KiB lie there in small pieces.
                await writer.drain()
            finally:
                pulse.held -= 1
            self._tail = (self._tail + chunk)[-TAIL:]
        if events is not None and (rest := events.rest()):
            await response.write(rest)

    async def _next_chunk(self, answer: aiohttp.ClientResponse) -> bytes:
        """What has come since the last call, at once; empty at the answer's end."""
        try:
            return await answer.content.readany()
        except FAILURES as error:
            if self._tail.endswith(DONE):
                return b""
            raise WorkerFailedError(told(error)) from error


def _ends_by_closing(answer: aiohttp.ClientResponse) -> bool:
    """Whether the end of the connection is the answer's, so that one broken off looks whole."""
    if answer.method == "HEAD" or answer.status in BODILESS:
        return False
    chunked = "chunked" in answer.headers.get("Transfer-Encoding", "").lower()
    return not chunked and "Content-Length" not in answer.headers


async def _reason(answer: aiohttp.ClientResponse) -> str:
    """Why a worker does not go on with an answer."""
    try:
        data = await answer.content.read(LONGEST_REASON)
        return msgspec.json.decode(data, type=Said).error.message
    except FAILURES as error:
        return told(error)
    except msgspec.DecodeError:
        return f"it answered with status {answer.status}"


def tokens_told(tail: bytes) -> int:
    """Tokens read and written, by the end of an answer; 0 when it does not tell.

    From OpenAI's `usage`, or from the `timings` that llama-server and our worker put there.
    """
    if found := TOTAL.search(tail):
        return int(found[1])
    prompt, predicted = PROMPT_N.search(tail), PREDICTED_N.search(tail)
    return (int(prompt[1]) if prompt else 0) + (int(predicted[1]) if predicted else 0)


def told(error: Exception) -> str:
    """What went wrong, in a word at least; where workers are is not for clients."""
    match error:
        case aiohttp.ClientConnectorError():
            number = error.os_error.errno
            said = f"it takes no connection{f': {os.strerror(number)}' if number else ''}"
        case aiohttp.ServerTimeoutError():
            said = "it did not answer in time"
        case aiohttp.ClientResponseError():
            said = "its answer is no proper HTTP"
        case aiohttp.ClientPayloadError():
            said = "its answer broke off, or is no proper HTTP"
        case aiohttp.ServerDisconnectedError():
            said = "it closed the connection without an answer"
        case _:
            said = str(error)
    return said or type(error).__name__
