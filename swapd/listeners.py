"""Listeners: the TCP port, the HTTP socket and the control socket of one server."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from swapd.control_socket.server import ControlSocket, bind, open_socket
from swapd.domain.settings import BodyTimeoutError
from swapd.http.access_control import AccessControl
from swapd.http.app import application
from swapd.http.connection import ConnectionLimiter, factory
from swapd.http.context import AppContext
from swapd.paths import Paths
from swapd.process.ports import port_owner
from swapd.system.stdio import raise_limit

SHUTDOWN_TIMEOUT = 1.0
"""Seconds at the end for sending buffered bytes; all requests have ended by then."""
TLS_HANDSHAKE_TIMEOUT = 10.0
CLIENT_ERRORS = (HttpProcessingError, ConnectionError, web.RequestPayloadError, BodyTimeoutError)
"""Exceptions caused by clients, which are not logged as errors of the server."""
BACKLOG = 1024
MAX_UNSENT_BYTES = 128 * 1024
"""Bytes of a response that the kernel buffers beyond those in transit."""
RESERVED_DESCRIPTORS = 256
"""File descriptors for files, workers and everything else but client connections."""
MAX_CONNECTIONS = 16_384


class PortTakenError(Exception):
    """The server can't listen on the address; the message is one sentence."""


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises PortTakenError, which names the process in the way."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise PortTakenError(
            f"{host!r} is not an address of this machine: {error.strerror}"
        ) from error
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # Without this the kernel buffers megabytes of a response that its client does not read.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)
    try:
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        pid = port_owner(port)
        owner = f" (held by pid {pid})" if pid else ""
        raise PortTakenError(
            f"can't listen on {host} port {port}: {error.strerror}{owner};"
            " choose another one with --port or SWAPD_PORT"
        ) from error
    sock.setblocking(False)
    return sock


class Listeners:
    """All listeners of one server."""

    def __init__(
        self,
        context: AppContext,
        paths: Paths,
        sock: socket.socket,
        access: AccessControl,
        tls: ssl.SSLContext | None,
    ) -> None:
        """Create the listeners; `access` and `tls` apply to `sock`, which listens already."""
        self._context = context
        self._paths = paths
        self._sock = sock
        self._access = access
        self._tls = tls
        # Each connection of a client may need a second descriptor, to a worker.
        capacity = (raise_limit() - RESERVED_DESCRIPTORS) // 2
        self._max_trusted = max(32, min(capacity // 4, MAX_CONNECTIONS))
        self._max_untrusted = max(64, min(capacity - self._max_trusted, MAX_CONNECTIONS))
        self._servers: list[asyncio.Server] = []
        self._runners: list[web.AppRunner] = []
        self._control_socket: ControlSocket | None = None
        self.socket: Path | None = None
        """Path of the HTTP socket, which needs no key; None if it could not be opened."""

    async def open(self) -> None:
        """Serve on all listeners. Failures of the two Unix sockets are logged and not fatal."""
        await self._serve(self._sock, self._access, self._tls)
        path = self._paths.http_socket
        try:
            await self._serve(bind(path), None)
            self.socket = path
        except OSError as error:
            self._context.logs.own.error("%s is not served: %s", path, error.strerror)
        path = self._paths.socket
        try:
            self._control_socket = await open_socket(self._context, path)
        except OSError as error:
            self._context.logs.own.error("%s is not served: %s", path, error.strerror)

    async def _serve(
        self, sock: socket.socket, access: AccessControl | None, tls: ssl.SSLContext | None = None
    ) -> None:
        context = self._context
        logger = context.logs.http_logger(*CLIENT_ERRORS)
        runner = web.AppRunner(
            application(context, access),
            handler_cancellation=True,
            access_log=None,
            logger=logger,
            shutdown_timeout=SHUTDOWN_TIMEOUT,
        )
        await runner.setup()
        assert runner.server is not None
        # Separate limits, so that clients of the port can't use up the connections of the socket.
        limit = self._max_untrusted if access is not None else self._max_trusted
        limiter = ConnectionLimiter(limit, context.logs.own)
        protocol_factory = factory(runner.server, limiter, context.timeouts, logger)
        server = await asyncio.get_running_loop().create_server(
            protocol_factory,
            sock=sock,
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=TLS_HANDSHAKE_TIMEOUT if tls is not None else None,
        )
        self._servers.append(server)
        self._runners.append(runner)

    async def close(self) -> None:
        """Close all listeners and connections, after all requests have ended."""
        for server in self._servers:
            server.close()
        if self._control_socket is not None:
            await self._control_socket.close()
        if self.socket is not None:
            self.socket.unlink(missing_ok=True)
        for runner in self._runners:
            await runner.cleanup()
