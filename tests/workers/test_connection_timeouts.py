"""The attributes of aiohttp that the connection timeouts depend on, and the measured progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from aiohttp import web

from workers.connection_timeouts import (
    PRIVATE_ATTRIBUTES,
    ConnectionLimits,
    ConnectionMonitor,
    ConnectionTimeout,
    current_request,
    waits_for_request,
)

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"


class Server(web.Server):
    """Server that reads the body of each request and responds with it."""

    def __init__(self) -> None:
        super().__init__(self._echo)
        self.accepted = asyncio.get_running_loop().create_future()
        """The first connection."""
        self.started = asyncio.Event()
        self.received = asyncio.Semaphore(0)
        """Received pieces of bodies."""

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self.accepted.set_result(handler)

    async def _echo(self, request: web.BaseRequest) -> web.Response:
        self.started.set()
        body = b""
        async for piece in request.content.iter_any():
            body += piece
            self.received.release()
        return web.Response(body=body)


@dataclass
class Served:
    """Both ends of a connection."""

    server: Server
    connection: web.RequestHandler
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """Start a server and connect to it."""
    server = Server()
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
    yield Served(server, await asyncio.wait_for(server.accepted, 10), reader, writer)
    writer.close()
    listener.close()
    await server.shutdown(1)


async def test_aiohttp_has_the_private_attributes_that_are_read(served: Served) -> None:
    connection = served.connection
    missing = [name for name in PRIVATE_ATTRIBUTES if not hasattr(connection, name)]
    assert not missing, (
        f"aiohttp's RequestHandler has no {', '.join(missing)} any more: "
        "change workers/connection_timeouts.py to its new names"
    )
    assert connection._request_count == 0, "_request_count no longer starts at 0"
    served.writer.write(HEAD)
    await asyncio.wait_for(served.server.started.wait(), 10)
    assert connection._request_count == 1, "_request_count no longer counts parsed requests"
    assert isinstance(current_request(connection), web.BaseRequest), (
        "_current_request is no longer the request whose handler runs"
    )
    assert not waits_for_request(connection), "_waiter is pending during a request"
    served.writer.write(b"abc")
    assert (await asyncio.wait_for(served.reader.readuntil(b"abc"), 10)).startswith(b"HTTP/1.1 200")
    assert current_request(connection) is None, "_current_request is kept after the request"
    assert waits_for_request(connection), "_waiter is not pending between requests"


async def test_a_head_expires_once_and_only_if_it_is_incomplete(served: Served) -> None:
    monitor = ConnectionMonitor(served.connection, ConnectionLimits(head=10))
    monitor.start_head(0)
    assert monitor.check(9.9) is None
    assert monitor.check(10) is ConnectionTimeout.HEAD
    assert monitor.check(11) is None
    monitor.start_head(20)
    served.writer.write(HEAD)
    await asyncio.wait_for(served.server.started.wait(), 10)
    assert monitor.check(40) is None


@pytest.mark.parametrize(("rate", "expired"), [(0.1, None), (1, ConnectionTimeout.BODY)])
async def test_a_body_may_take_longer_the_more_bytes_it_has(
    served: Served, rate: float, expired: ConnectionTimeout | None
) -> None:
    limits = ConnectionLimits(body=10, body_rate=rate)
    monitor = ConnectionMonitor(served.connection, limits)
    served.writer.write(HEAD)
    await asyncio.wait_for(served.server.started.wait(), 10)
    assert monitor.check(0) is None
    for received in (1, 2):
        served.writer.write(b"a")
        await asyncio.wait_for(served.server.received.acquire(), 10)
        assert monitor.check(received * 6 - 1) is None
    assert monitor.check(14) is expired
    assert monitor.check(21) is ConnectionTimeout.BODY, "no byte was received for 10 seconds"
