"""What swapd listens on: HTTP for everybody, two sockets in its home for whoever may open them."""

from __future__ import annotations

import socket
from pathlib import Path

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from swapd.doors.guard import Guard
from swapd.doors.house import House
from swapd.doors.origins import is_loopback
from swapd.doors.server import KEYED, OVERVIEW, PUBLIC, application
from swapd.doors.socket.door import SocketDoor, bind, open_socket
from swapd.effects.ports import holder_of
from swapd.home import Home
from swapd.words.settings import Settings

HEADER_BYTES = 16384
SHUTDOWN = 1.0
"""Seconds at the end for what is still in the connections; all that was asked has ended by then."""


class PortTakenError(Exception):
    """The address can't be listened on."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises PortTakenError with a sentence that says who is in the way."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise PortTakenError(f"{host!r} is no address of this machine: {error.strerror}") from error
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        pid = holder_of(port)
        who = f" (held by pid {pid})" if pid else ""
        raise PortTakenError(
            f"can't listen on {host} port {port}: {error.strerror}{who};"
            " choose another one with --port or SWAPD_PORT"
        ) from error
    sock.setblocking(False)
    return sock


class Front:
    """All doors of one swapd."""

    def __init__(self, house: House, home: Home, sock: socket.socket) -> None:
        self._house = house
        self._home = home
        self._sock = sock
        self._guard = Guard(
            house.settings.access,
            loopback=is_loopback(str(sock.getsockname()[0])),
            body_limit=house.settings.max_body_bytes,
            metrics=house.metrics,
            public=PUBLIC,
            keyed=KEYED,
            overview=OVERVIEW,
        )
        self._runners: list[web.AppRunner] = []
        self._lines: SocketDoor | None = None
        self.socket: Path | None = None
        """Where HTTP is spoken without a key; None where that was not possible."""

    async def open(self) -> None:
        """Answer at all doors. Without its sockets swapd serves all the same."""
        await self._serve(self._sock, self._guard)
        path = self._home.http_socket
        try:
            await self._serve(bind(path), None)
            self.socket = path
        except OSError as error:
            self._house.logs.own.error("%s is not served: %s", path, error.strerror)
        try:
            self._lines = await open_socket(self._house, self._home.socket)
        except OSError as error:
            self._house.logs.own.error("%s is not served: %s", self._home.socket, error.strerror)

    async def _serve(self, sock: socket.socket, guard: Guard | None) -> None:
        runner = web.AppRunner(
            application(self._house, guard),
            handler_cancellation=True,
            access_log=None,
            logger=self._house.logs.of_server(HttpProcessingError, ConnectionError),
            shutdown_timeout=SHUTDOWN,
            max_field_size=HEADER_BYTES,
        )
        await runner.setup()
        await web.SockSite(runner, sock).start()
        self._runners.append(runner)

    def change(self, settings: Settings) -> None:
        """The configuration has been read anew: other terms of access hold from now on."""
        self._guard.change(settings.access)

    async def close(self) -> None:
        """Once nothing is served any more: let the last bytes out, then end all connections."""
        if self._lines is not None:
            await self._lines.close()
        if self.socket is not None:
            self.socket.unlink(missing_ok=True)
        for runner in self._runners:
            await runner.cleanup()
