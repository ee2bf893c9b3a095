"""Connections that don't move: they cost little, hold up nobody, and go."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from tests.workers.conftest import Start
from tests.workers.process import TIMEOUT, WorkerProcess
from workers.api.server import WorkerServer
from workers.api.timeouts import ParserLimits

SHORT = ParserLimits(unread=0.1, body=0.1, first=0.1, look=0.02)
LONG = ParserLimits(look=0.02)


class Served:
    """A server with one route, which writes for as long as somebody reads."""

    def __init__(self) -> None:
        self.port = 0
        self.gone = asyncio.Event()
        self.read = asyncio.Event()

    async def flood(self, http: web.Request) -> web.StreamResponse:
        """Writes until the connection is gone."""
        response = web.StreamResponse()
        await response.prepare(http)
        try:
            while True:
                await response.write(b"x" * 65536)
        finally:
            self.gone.set()

    async def swallow(self, http: web.Request) -> web.StreamResponse:
        """Reads the body."""
        try:
            return web.Response(text=str(len(await http.read())))
        finally:
            self.read.set()

    async def connect(self, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that has sent this."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        await writer.drain()
        return reader, writer


@pytest.fixture
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """See there."""
    found = Served()
    server = WorkerServer(request.param)
    _, found.port = await server.listen("127.0.0.1", 0)
    server._routes = {("GET", "/flood"): found.flood, ("POST", "/swallow"): found.swallow}
    yield found
    await server._runner.cleanup()


@pytest.mark.parametrize("served", [SHORT], indirect=True)
async def test_who_reads_nothing_goes(served: Served) -> None:
    reader, writer = await served.connect(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.wait_for(served.gone.wait(), TIMEOUT)
    del reader
    writer.close()


@pytest.mark.parametrize("served", [SHORT], indirect=True)
async def test_a_body_without_end_goes(served: Served) -> None:
    head = b"POST /swallow HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc"
    reader, writer = await served.connect(head)
    assert await read_to_end(reader) == b""
    await asyncio.wait_for(served.read.wait(), TIMEOUT)
    writer.close()


@pytest.mark.parametrize("served", [SHORT], indirect=True)
@pytest.mark.parametrize("sent", [b"", b"GET /fl", b"GET /flood HTTP/1.1\r\nX: y\r\n"], ids=str)
async def test_a_request_that_does_not_begin_goes(served: Served, sent: bytes) -> None:
    reader, writer = await served.connect(sent)
    assert await read_to_end(reader) == b""
    writer.close()


@pytest.mark.parametrize("served", [SHORT], indirect=True)
async def test_who_waits_for_the_next_request_stays(served: Served) -> None:
    """swapd keeps connections, and must not find one closed when it needs it."""
    ask = b"POST /swallow HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    reader, writer = await served.connect(ask)
    for _ in range(2):
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(1) == b"3"
        other, silent = await served.connect(b"")  # as long as it takes for one that goes
        assert await read_to_end(other) == b""
        silent.close()
        writer.write(ask)
    writer.close()


@pytest.mark.parametrize("served", [LONG], indirect=True)
async def test_a_flood_of_headers_is_refused(served: Served) -> None:
    reader, writer = await served.connect(b"GET /flood HTTP/1.1\r\n")
    with pytest.raises(ConnectionError):
        while True:
            writer.write(b"X-Header: " + b"x" * 4000 + b"\r\n")
            await writer.drain()
            if reader.at_eof():
                raise ConnectionResetError
    writer.close()


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection is closed, in whatever way."""
    try:
        return await asyncio.wait_for(reader.read(), TIMEOUT)
    except ConnectionError:
        return b""


def test_an_answer_that_nobody_reads_holds_up_nobody(start: Start, tiny_gguf: Path) -> None:
    worker = start(tiny_gguf, "--ctx-size", "8192", "--parallel", "2")
    body = {"prompt": "a", "max_tokens": 500, "ignore_eos": True, "stream": True, "logprobs": 20}
    before = resident(worker)
    readers = [unread(worker, body) for _ in range(2)]
    assert worker.text(prompt="b", max_tokens=5) is not None, "both slots come free"
    while worker.metric("requests_processing"):
        pass
    assert resident(worker) - before < 60_000, "kilobytes"
    for reader in readers:
        with reader, reader.makefile("rb") as stream:
            events = [line for line in stream if line.startswith(b"data: ")]
        assert events[-1] == b"data: [DONE]\n"


def unread(worker: WorkerProcess, body: dict[str, object]) -> socket.socket:
    """A connection that has asked, and does not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(TIMEOUT)
    connection.connect(("127.0.0.1", worker.port))
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
    connection.sendall(f"{head}Connection: close\r\n\r\n".encode() + data)
    return connection


def resident(worker: WorkerProcess) -> int:
    """Kilobytes of memory that it has."""
    status = Path(f"/proc/{worker.process.pid}/status")
    if not status.exists():
        return 0
    (line,) = [one for one in status.read_text().splitlines() if one.startswith("VmRSS")]
    return int(line.split()[1])
