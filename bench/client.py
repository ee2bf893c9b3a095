"""Light HTTP client: one connection, one request at a time, with the time of every chunk.

A measuring client must cost less than the measured server, so nothing is decoded while a clock
runs: chunks are stored with their times and decoded afterwards.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec


@dataclass(slots=True)
class Answer:
    """A response with its times, in seconds of `time.perf_counter`."""

    status: int
    began: float
    ended: float
    pieces: list[tuple[float, bytes]] = field(repr=False)
    """Received chunks of the body with their times."""

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(piece for _, piece in self.pieces)

    @property
    def seconds(self) -> float:
        """Seconds from the first byte of the request to the last byte of the response."""
        return self.ended - self.began

    def checked(self) -> Answer:
        """Return this response. Raises RuntimeError unless its status is 200."""
        if self.status != 200:
            raise RuntimeError(f"HTTP {self.status}: {self.body[:500].decode(errors='replace')}")
        return self

    def events(self) -> Iterator[tuple[float, bytes]]:
        """Yield the data of the stream's events, each with the time of its last byte."""
        rest = b""
        for when, piece in self.pieces:
            *whole, rest = (rest + piece).split(b"\n\n")
            for event in whole:
                if event.startswith(b"data: ") and event != b"data: [DONE]":
                    yield when, event[6:]

    def texts(self) -> list[tuple[float, str]]:
        """Return the non-empty texts of a stream of completions, with their times."""
        found = []
        for when, data in self.events():
            event = msgspec.json.decode(data)
            if "error" in event:
                raise RuntimeError(f"the stream broke off: {event['error']}")
            for choice in event.get("choices") or ():
                text = choice.get("text") or (choice.get("delta") or {}).get("content")
                if text:
                    found.append((when, text))
        return found

    @property
    def to_first(self) -> float:
        """Seconds to the first text of a stream."""
        texts = self.texts()
        if not texts:
            raise RuntimeError(f"a stream without text: {self.body[:500]!r}")
        return texts[0][0] - self.began

    @property
    def tokens(self) -> int:
        """Generated tokens, from the usage in the stream's last event or in the response."""
        datas = [data for _, data in self.events()] or [self.body]
        for data in reversed(datas):
            usage: dict[str, Any] = msgspec.json.decode(data).get("usage") or {}
            if usage:
                return int(usage["completion_tokens"])
        raise RuntimeError("the answer tells no usage")


class Connection(asyncio.Protocol):
    """HTTP connection: `await Connection.open(url)`, then `await send(…)` for each request.

    Without `keep`, each request has a new connection, made before its clock starts: the native
    server closes the connection after a stream whatever its headers say, so a comparison with it
    must not reuse connections. Raises ConnectionError when the server closes the connection before
    the response is complete.
    """

    def __init__(self, url: str, *, keep: bool = True) -> None:
        self._keep = keep
        where = urlsplit(url)
        assert where.hostname and where.port, url
        self._host, self._port = where.hostname, where.port
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._rest = b""
        self._clear()

    def _clear(self) -> None:
        self._in_body = False
        self._status = 0
        self._left = -1
        """Bytes to come of a sized body; -1: it is chunked."""
        self._pieces: list[tuple[float, bytes]] = []

    @classmethod
    async def open(cls, url: str, *, keep: bool = True) -> Connection:
        """Connect to the host and port of `url`."""
        connection = cls(url, keep=keep)
        await connection._connect()
        return connection

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, self._host, self._port)

    async def send(self, path: str, body: bytes = b"") -> Answer:
        """Send a request, POST with a body, GET without; return the response."""
        if not self._keep or self._transport is None:
            self.close()
            await self._connect()
        assert self._transport is not None
        self._clear()
        self._waiter = asyncio.get_running_loop().create_future()
        method = "POST" if body else "GET"
        began = time.perf_counter()
        self._transport.write(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await self._waiter
        return Answer(self._status, began, time.perf_counter(), self._pieces)

    def close(self) -> None:
        """Close the connection."""
        self._waiter = None
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the pending request."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionError(f"hung up before the end: {exc}"))

    def data_received(self, data: bytes) -> None:
        """Parse the received bytes; complete the pending request after its last byte."""
        now = time.perf_counter()
        self._rest += data
        if not self._in_body and not self._take_head():
            return
        whole = self._take_chunks(now) if self._left < 0 else self._take_sized(now)
        if whole and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take_head(self) -> bool:
        head, end, rest = self._rest.partition(b"\r\n\r\n")
        if not end:
            return False
        first, *lines = head.split(b"\r\n")
        self._status = int(first.split(b" ")[1])
        for line in lines:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                self._left = int(value)
        self._rest, self._in_body = rest, True
        return True

    def _take_sized(self, now: float) -> bool:
        piece, self._rest = self._rest[: self._left], self._rest[self._left :]
        self._left -= len(piece)
        self._pieces.append((now, piece))
        return self._left == 0

    def _take_chunks(self, now: float) -> bool:
        """Store all whole chunks as one piece; return True after the last chunk."""
        data, at, taken = self._rest, 0, []
        over = False
        while not over:
            line = data.find(b"\r\n", at)
            if line < 0:
                break
            size = int(data[at:line].partition(b";")[0], 16)
            end = line + 2 + size
            if len(data) < end + 2:
                break
            over = size == 0
            taken.append(data[line + 2 : end])
            at = end + 2
        self._rest = data[at:]
        if piece := b"".join(taken):
            self._pieces.append((now, piece))
        return over
