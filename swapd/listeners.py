"""What swapd listens on: HTTP for everybody, two sockets in its home for whoever may open them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from swapd.control_socket.server import ControlSocket, bind, open_socket
from swapd.domain.settings import BodyTimeoutError, ServerSettings
from swapd.http.access_control import AccessControl
from swapd.http.app import KEYED, OVERVIEW, PUBLIC, application
from swapd.http.connection import ConnectionLimiter, factory
from swapd.http.context import AppContext
from swapd.http.origins import is_loopback
from swapd.http.tls import TlsError, renew
from swapd.paths import Paths
from swapd.process.ports import port_owner
from swapd.system.stdio import raise_limit

SHUTDOWN = 1.0
"""Seconds at the end for what is still in the connections; all that was asked has ended by then."""
HANDSHAKE = 10.0
CLIENTS_FAULTS = (HttpProcessingError, ConnectionError, web.RequestPayloadError, BodyTimeoutError)
BACKLOG = 1024
UNSENT_BYTES = 128 * 1024
"""What the kernel may hold of an answer beyond what is on its way."""
SPARE_DESCRIPTORS = 256
"""For files, workers and what else is no client's connection."""
MOST_CONNECTIONS = 16_384


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
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # Else the kernel takes megabytes of an answer that its reader leaves lying.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    try:
        sock.bind(address)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        pid = port_owner(port)
        who = f" (held by pid {pid})" if pid else ""
        raise PortTakenError(
            f"can't listen on {host} port {port}: {error.strerror}{who};"
            " choose another one with --port or SWAPD_PORT"
        ) from error
    sock.setblocking(False)
    return sock


class Listeners:
    """All doors of one swapd."""

    def __init__(
        self, house: AppContext, home: Paths, sock: socket.socket, tls: ssl.SSLContext | None
    ) -> None:
        self._house = house
        self._tls = tls
        self._home = home
        self._sock = sock
        self._guard = AccessControl(
            house.settings.access,
            loopback=is_loopback(str(sock.getsockname()[0])),
            body_limit=house.settings.max_body_bytes,
            metrics=house.metrics,
            public=PUBLIC,
            keyed=KEYED,
            overview=OVERVIEW,
        )
        room = (raise_limit() - SPARE_DESCRIPTORS) // 2
        self._most_trusted = max(32, min(room // 4, MOST_CONNECTIONS))
        self._most = max(64, min(room - self._most_trusted, MOST_CONNECTIONS))
        self._listeners: list[asyncio.Server] = []
        self._runners: list[web.AppRunner] = []
        self._lines: ControlSocket | None = None
        self.socket: Path | None = None
        """Where HTTP is spoken without a key; None where that was not possible."""

    async def open(self) -> None:
        """Answer at all doors. Without its sockets swapd serves all the same."""
        await self._serve(self._sock, self._guard, self._tls)
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

    async def _serve(
        self, sock: socket.socket, guard: AccessControl | None, tls: ssl.SSLContext | None = None
    ) -> None:
        house = self._house
        logger = house.logs.of_server(*CLIENTS_FAULTS)
        runner = web.AppRunner(
            application(house, guard),
            handler_cancellation=True,
            access_log=None,
            logger=logger,
            shutdown_timeout=SHUTDOWN,
        )
        await runner.setup()
        assert runner.server is not None
        # Each door has its own: whoever crowds the port keeps nobody from the socket.
        most = self._most if guard is not None else self._most_trusted
        crowd = ConnectionLimiter(most, house.logs.own)
        made = factory(runner.server, crowd, house.patience, logger)
        listener = await asyncio.get_running_loop().create_server(
            made,
            sock=sock,
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=HANDSHAKE if tls is not None else None,
        )
        self._listeners.append(listener)
        self._runners.append(runner)

    def change(self, settings: ServerSettings) -> None:
        """The configuration has been read anew: other terms of access hold from now on, and new
        connections get the certificate that is in the file now."""
        self._guard.change(settings.access)
        tls = self._house.settings.tls
        if self._tls is not None:
            try:
                renew(self._tls, tls.cert, tls.key)
            except TlsError as error:
                self._house.logs.own.error("the certificate from before stays in use: %s", error)

    async def close(self) -> None:
        """Once nothing is served any more: let the last bytes out, then end all connections."""
        for listener in self._listeners:
            listener.close()
        if self._lines is not None:
            await self._lines.close()
        if self.socket is not None:
            self.socket.unlink(missing_ok=True)
        for runner in self._runners:
            await runner.cleanup()
