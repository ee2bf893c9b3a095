"""Stalled connections: they cost little, block no other request, and are closed."""

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
from workers.connection_timeouts import ConnectionLimits

SHORT = ConnectionLimits(response=0.1, body=0.1, head=0.1, check_interval=0.02)
LONG = ConnectionLimits(check_interval=0.02)


class Served:
    """Server with a route that writes without end, and one that reads a body."""

    def __init__(self) -> None:
        self.port = 0
        self.closed = asyncio.Event()
        self.read = asyncio.Event()

    async def flood(self, request: web.Request) -> web.StreamResponse:
        """Write until the connection is closed."""
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
        finally:
            self.closed.set()

    async def swallow(self, request: web.Request) -> web.StreamResponse:
        """Read the body and return its length."""
        try:
            return web.Response(text=str(len(await request.read())))
        finally:
            self.read.set()

    async def connect(self, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection that has sent these bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        await writer.drain()
        return reader, writer


@pytest.fixture
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """Start a server with the limits of the parameter."""
    running = Served()
    server = WorkerServer(request.param)
    _, running.port = await server.listen("127.0.0.1", 0)
    server._routes = {("GET", "/flood"): running.flood, ("POST", "/swallow"): running.swallow}
    yield running
    await server._runner.cleanup()


@pytest.mark.parametrize("served", [SHORT], indirect=True)
async def test_a_client_that_reads_nothing_is_disconnected(served: Served) -> None:
    reader, writer = await served.connect(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.wait_for(served.closed.wait(), TIMEOUT)
    del reader
    writer.close()


@pytest.mark.parametrize("served", [SHORT], indirect=True)
async def test_a_connection_with_an_incomplete_body_is_closed(served: Served) -> None:
    head = b"POST /swallow HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc"
    reader, writer = await served.connect(head)
    assert await read_to_end(reader) == b""
    await asyncio.wait_for(served.read.wait(), TIMEOUT)
    writer.close()


@pytest.mark.parametrize("served", [SHORT], indirect=True)
@pytest.mark.parametrize("sent", [b"", b"GET /fl", b"GET /flood HTTP/1.1\r\nX: y\r\n"], ids=str)
async def test_a_connection_with_an_incomplete_head_is_closed(served: Served, sent: bytes) -> None:
    reader, writer = await served.connect(sent)
    assert await read_to_end(reader) == b""
    writer.close()


@pytest.mark.parametrize("served", [SHORT], indirect=True)
async def test_an_idle_connection_stays_open_between_requests(served: Served) -> None:
    """swapd pools connections, and must not find one closed when it sends a request."""
    request = b"POST /swallow HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    reader, writer = await served.connect(request)
    for _ in range(2):
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(1) == b"3"
        other, silent = await served.connect(
            b""
        )  # the time until a connection without a request is closed
        assert await read_to_end(other) == b""
        silent.close()
        writer.write(request)
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
    """Return the bytes received until the connection is closed or reset."""
    try:
        return await asyncio.wait_for(reader.read(), TIMEOUT)
    except ConnectionError:
        return b""


def test_an_unread_response_blocks_no_other_request(start: Start, tiny_gguf: Path) -> None:
    worker = start(tiny_gguf, "--ctx-size", "8192", "--parallel", "2")
    body = {"prompt": "a", "max_tokens": 500, "ignore_eos": True, "stream": True, "logprobs": 20}
    before = memory_of(worker)
    readers = [unread_request(worker, body) for _ in range(2)]
    assert worker.text(prompt="b", max_tokens=5) is not None, "both slots become free"
    while worker.metric("requests_processing"):
        pass
    assert memory_of(worker) - before < 60_000, "kilobytes"
    for reader in readers:
        with reader, reader.makefile("rb") as stream:
            events = [line for line in stream if line.startswith(b"data: ")]
        assert events[-1] == b"data: [DONE]\n"


def unread_request(worker: WorkerProcess, body: dict[str, object]) -> socket.socket:
    """Return a connection that has sent a request and does not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(TIMEOUT)
    connection.connect(("127.0.0.1", worker.port))
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
    connection.sendall(f"{head}Connection: close\r\n\r\n".encode() + data)
    return connection


def memory_of(worker: WorkerProcess) -> int:
    """Return the resident memory of a worker in kilobytes."""
    status = Path(f"/proc/{worker.process.pid}/status")
    if not status.exists():
        return 0
    (found,) = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")]
    return int(found.split()[1])
