"""Upstream of negligible cost: prepared bytes, almost no parsing.

`tests.fake_worker` answers a thousand requests per second at most; with it, the cost of a proxy
would be lost in the cost of the upstream. This one answers `/health`, and any POST with prepared
JSON or, when the body has `"stream":true`, with as many events as its `max_tokens`, one write
each. An event has the time of its write, by the clock that all processes of a machine share.
`pause` in the body is the time between events in seconds; without it, other connections are still
served in between.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from typing import cast

import uvloop

LIMIT = re.compile(rb'"max_tokens": ?(\d+)')
PAUSE = re.compile(rb'"pause": ?([0-9.]+)')
LENGTH = re.compile(rb"content-length: ?(\d+)", re.IGNORECASE)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
MESSAGE = (
    b'{"id":"chatcmpl-0","object":"chat.completion","created":1700000000,"model":"upstream",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"Who goes there? A friend."},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":12,"completion_tokens":8,'
    b'"total_tokens":20}}'
)
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    % len(MESSAGE)
    + MESSAGE
)
EVENT = (
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"upstream","choices":[{"index":0,"delta":{"content":" word"},'
    b'"finish_reason":null}],"written":%d}\n\n'
)
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    """Encode one chunk of chunked transfer encoding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


class Upstream(asyncio.Protocol):
    """Connection of a client."""

    def __init__(self) -> None:
        self._data = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel a running stream."""
        del exc
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer each complete request."""
        self._data += data
        while True:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            found = LENGTH.search(head)
            length = int(found[1]) if found else 0
            if len(rest) < length:
                return
            self._data = rest[length:]
            self._answer(rest[:length])

    def _answer(self, body: bytes) -> None:
        if b'"stream":true' not in body:
            self._transport.write(ANSWER)
            return
        limit, pause = LIMIT.search(body), PAUSE.search(body)
        events = int(limit[1]) if limit else 1
        self._task = asyncio.get_running_loop().create_task(
            self._stream(events, float(pause[1]) if pause else 0.0)
        )

    async def _stream(self, events: int, pause: float) -> None:
        write = self._transport.write
        write(STREAM)
        for _ in range(events):
            write(chunk(EVENT % time.perf_counter_ns()))
            await asyncio.sleep(pause)
        write(chunk(DONE) + chunk(b""))


async def serve(port: int) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upstream, "127.0.0.1", port, backlog=1024)
    number = server.sockets[0].getsockname()[1]
    print(f'{{"url": "http://127.0.0.1:{number}"}}', flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="An upstream of prepared bytes.")
    parser.add_argument("--port", type=int, default=0)
    uvloop.install()
    asyncio.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
