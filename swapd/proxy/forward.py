"""The exchange with one worker: the request forwarded, the response streamed to the client."""

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
"""Headers that apply to one connection only (RFC 9110, section 7.6.1)."""

BODILESS = frozenset({204, 304})
"""Statuses of responses without a body."""

CONNECT_TIMEOUT = 5.0
"""Seconds in which a worker has to accept a connection."""
KEEP_ALIVE = 3.0
"""Seconds until an idle connection is closed. A worker closes it later (llama-server: after 5 s):
a request sent while the worker closes its connection can't be distinguished from a lost one."""
RECEIVE_BUFFER = 64 * 1024
"""Bytes of the kernel's receive buffer of one connection."""
READ_AHEAD = 16 * 1024
"""Bytes of a response that are read ahead of a slow client. In small pieces they take several times
as much memory, and there may be hundreds of such clients."""
MAX_HEAD_LINE = 65536
"""Bytes of the longest line in the head of a worker's response."""
FAILURES = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
"""Exceptions of a failed exchange; `failure_message` has the sentence for each."""
NO_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT)
"""Timeouts of an exchange: for connecting alone, because a long prefill is not a fault."""

SWITCHING_PROTOCOLS = 101
EVENT_STREAM = "text/event-stream"
DONE = b"data: [DONE]\n\n"
"""Last event of a complete stream; some workers send none."""
MAX_ERROR_BODY = 65536
TAIL_BYTES = 2048
"""Bytes at the end of a response that contain its usage."""
TOTAL_TOKENS = re.compile(rb'"total_tokens":\s*(\d{1,12})')
PROMPT_N = re.compile(rb'"prompt_n":\s*(\d{1,12})')
PREDICTED_N = re.compile(rb'"predicted_n":\s*(\d{1,12})')


ExitReason: TypeAlias = Callable[[float], Awaitable[str]]
"""Function that waits the given seconds for a worker's exit and returns the exit reason; empty if
the worker still runs."""
CLOSED_WITHIN = 0.1
"""Seconds within which the exit of a worker is detected after it closed its connection."""
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
"""Possible ends of an event in a stream."""


class ErrorDetail(msgspec.Struct):
    """An error in OpenAI's format."""

    message: str


class ErrorBody(msgspec.Struct):
    """Body of an error response."""

    error: ErrorDetail


class WorkerFailedError(Exception):
    """The worker's response is missing or incomplete."""


class WorkerDrainingError(WorkerFailedError):
    """The worker accepts no requests. A built-in one exits when its present requests are done."""


def end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Return the end-to-end headers: all but the hop-by-hop ones."""
    named = ",".join(headers.getall("Connection", ())).split(",")
    drop = HOP_BY_HOP | {name.strip().lower() for name in named}
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in drop)


def new_session() -> aiohttp.ClientSession:
    """Return the HTTP client for all workers.

    It has no connection limit, because leases limit the requests; it does not decompress bodies,
    and stores no cookies.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEP_ALIVE, socket_factory=_small_buffer_socket
        ),
        timeout=NO_TIMEOUT,
        auto_decompress=False,
        read_bufsize=READ_AHEAD,
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=MAX_HEAD_LINE,
        max_field_size=MAX_HEAD_LINE,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    )


def _small_buffer_socket(address: AddrInfoType) -> socket.socket:
    """Return a socket whose small buffer keeps megabytes from piling up for a slow client."""
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.setblocking(False)
    return sock


class Exchange:
    """A client request, forwarded to a worker, and to further ones when its worker exits."""

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
        """The response to the client; None until its head is sent."""
        self._session = session
        self._request = request
        self._path = path
        self._body = body
        self._added = added
        """Headers that are added to the response."""
        self._withheld = withheld
        """Names of request headers that are not forwarded to the worker."""
        self._events: EventIds | None = None
        self._tail = b""

    @property
    def is_retryable(self) -> bool:
        """True if another worker can serve the request, with no more than a pause for the client.

        That is so until the first byte of the body is sent, and throughout streams with ids.
        """
        if self.response is None or (self._events and self._events.can_resume):
            return True
        return not self._tail and self.response.content_type == EVENT_STREAM

    @property
    def has_started(self) -> bool:
        """True if the client has events that the next worker must not repeat."""
        return self._events is not None and bool(self._events.ids)

    @property
    def is_within_event(self) -> bool:
        """True if the client has the beginning of an event without its end."""
        return bool(self._tail) and not self._tail.endswith(_EVENT_ENDS)

    async def send(
        self, base_url: str, liveness: Liveness, resumable: bool, exit_reason: ExitReason
    ) -> int:
        """Send the request to a worker and stream the response to the client.

        A stream that another worker began is resumed; if `resumable`, event ids are requested,
        which a later resumption needs. Returns the number of tokens that the response reports.
        Raises WorkerFailedError when the worker fails, ConnectionResetError when the client has
        disconnected. Unless the response is complete, the connection to the worker is closed, so
        that the worker stops generating.
        """
        # The request: a resumption if the client has events already.
        path, body, headers = self._path, self._body, self._headers(resumable)
        if self._events is not None and self._events.ids:
            path, body = f"{RESUME_PREFIX}{path}", self._events.resumption(body)
        elif self._events is not None:
            self._events = EventIds()
        try:
            worker_response = await self._session.request(
                self._request.method,
                URL(base_url + path, encoded=True),
                data=body or None,
                headers=headers,
                allow_redirects=False,
            )
        except aiohttp.ClientConnectorError as error:
            raise WorkerDrainingError(failure_message(error)) from error
        except FAILURES as error:
            raise WorkerFailedError(failure_message(error)) from error
        # The response: its head is checked before the client gets one.
        async with worker_response:
            if DRAINING_HEADER in worker_response.headers:
                raise WorkerDrainingError(await _error_message(worker_response))
            if worker_response.status == SWITCHING_PROTOCOLS:
                # No upgrade was requested, and no response follows.
                worker_response.close()
                raise WorkerFailedError(f"it answered with status {SWITCHING_PROTOCOLS}")
            response = await self._prepare_response(worker_response, resumable)
            await self._relay(worker_response, response, liveness)
            # A body that ends with the connection looks complete even if the worker crashed.
            if _ends_by_closing(worker_response) and (reason := await exit_reason(CLOSED_WITHIN)):
                raise WorkerFailedError(reason)
            await response.write_eof()
        return reported_tokens(self._tail)

    def _headers(self, resumable: bool) -> CIMultiDict[str]:
        headers = end_to_end(self._request.headers)
        # A compressed body was decompressed when it was received.
        for name in (
            "Host",
            "Content-Length",
            "Expect",
            "Content-Encoding",
            # Access control checked both; they refer to swapd's address.
            "Origin",
            "Sec-Fetch-Site",
            RESUMABLE_HEADER,
            *self._withheld,
        ):
            headers.popall(name, None)
        if resumable:
            headers[RESUMABLE_HEADER] = "1"
        return headers

    async def _prepare_response(
        self, worker_response: aiohttp.ClientResponse, resumable: bool
    ) -> web.StreamResponse:
        """Return the response to the client; send its head if that was not done before."""
        is_stream = worker_response.content_type == EVENT_STREAM
        if self.response is not None:
            if worker_response.status != self.response.status or not is_stream:
                raise WorkerFailedError(await _error_message(worker_response))
            if resumable and self._events is None:
                self._events = EventIds()
            return self.response
        response = web.StreamResponse(status=worker_response.status, reason=worker_response.reason)
        response.headers.extend(end_to_end(worker_response.headers))
        response.headers.update(self._added)
        await response.prepare(self._request)
        self.response = response
        if resumable and is_stream and "Content-Length" not in worker_response.headers:
            self._events = EventIds()
        return response

    async def _relay(
        self,
        worker_response: aiohttp.ClientResponse,
        response: web.StreamResponse,
        liveness: Liveness,
    ) -> None:
        """Forward the body to the client, without event ids, and record signs of liveness."""
        events, writer = self._events, self._request.writer
        while chunk := await self._next_chunk(worker_response):
            liveness.last_activity = now()
            if events is not None and not (chunk := events.take(chunk)):
                continue
            liveness.held += 1
            try:
                await response.write(chunk)
                # `write` waits for a client only once 64 KiB are buffered in small pieces.
                await writer.drain()
            finally:
                liveness.held -= 1
            self._tail = (self._tail + chunk)[-TAIL_BYTES:]
        if events is not None and (rest := events.rest()):
            await response.write(rest)

    async def _next_chunk(self, worker_response: aiohttp.ClientResponse) -> bytes:
        """Return the bytes received since the last call; empty at the end of the response."""
        try:
            return await worker_response.content.readany()
        except FAILURES as error:
            if self._tail.endswith(DONE):
                return b""  # The stream was complete when the connection broke.
            raise WorkerFailedError(failure_message(error)) from error


def _ends_by_closing(response: aiohttp.ClientResponse) -> bool:
    """Return True if closing the connection ends the body: a truncated one then looks complete."""
    if response.method == "HEAD" or response.status in BODILESS:
        return False
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    return not chunked and "Content-Length" not in response.headers


async def _error_message(response: aiohttp.ClientResponse) -> str:
    """Return the message of a worker's error response."""
    try:
        data = await response.content.read(MAX_ERROR_BODY)
        return msgspec.json.decode(data, type=ErrorBody).error.message
    except FAILURES as error:
        return failure_message(error)
    except msgspec.DecodeError:
        return f"it answered with status {response.status}"


def reported_tokens(tail: bytes) -> int:
    """Return the tokens of prompt and answer that the end of a response reports; 0 if none.

    Sources are OpenAI's `usage`, or the `timings` of llama-server and of the built-in worker.
    """
    if found := TOTAL_TOKENS.search(tail):
        return int(found[1])
    prompt, predicted = PROMPT_N.search(tail), PREDICTED_N.search(tail)
    return (int(prompt[1]) if prompt else 0) + (int(predicted[1]) if predicted else 0)


_FAILURE_MESSAGES: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ServerTimeoutError, "it did not answer in time"),
    (aiohttp.ClientResponseError, "its response is not valid HTTP"),
    (aiohttp.ClientPayloadError, "its response broke off, or is not valid HTTP"),
    (aiohttp.ServerDisconnectedError, "it closed the connection without a response"),
)
"""Sentence for each kind of failure; the first entry that matches counts."""


def failure_message(error: Exception) -> str:
    """Return a sentence on a failed exchange, without the worker's address. Never empty.

    Addresses of workers are internal, and the message is sent to clients.
    """
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        return f"it accepts no connections{f': {os.strerror(number)}' if number else ''}"
    for kind, message in _FAILURE_MESSAGES:
        if isinstance(error, kind):
            return message
    return str(error) or type(error).__name__
