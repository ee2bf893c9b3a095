"""The HTTP server: which path means what."""

from __future__ import annotations

import socket

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from swapd.doors import admin, proxy
from swapd.doors.errors import BODY_LIMIT, shaped
from swapd.doors.house import HOUSE, House
from swapd.effects.ports import holder_of

BY_BODY = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/rerank",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/completion",
    "/infill",
    "/rerank",
    "/tokenize",
    "/detokenize",
    "/apply-template",
)
"""Paths whose JSON body names a model; whether its worker knows them is the worker's affair."""
HEADER_BYTES = 16384
SHUTDOWN = 1.0
"""Seconds at the end for what is still in the connections; all that was asked has ended by then."""


def application(house: House) -> web.Application:
    """All routes over one house."""
    app = web.Application(client_max_size=house.settings.max_body_bytes, middlewares=[shaped])
    app[HOUSE] = house
    app[BODY_LIMIT] = house.settings.max_body_bytes
    app.add_routes([web.post(path, proxy.by_body) for path in BY_BODY])
    app.add_routes(
        [
            web.route("*", "/upstream/{rest:.+}", proxy.by_path),
            web.get("/v1/models", admin.models),
            web.get("/models", admin.models),
            web.get("/v1/models/{name:.+}", admin.one_model),
            web.get("/running", admin.running),
            web.post("/load", admin.load),
            web.post("/unload", admin.unload),
            web.get("/unload", admin.unload),
            web.get("/health", admin.health),
            web.get("/metrics", admin.metrics),
            web.get("/logs", admin.logs),
        ]
    )
    return app


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


async def serve(house: House, sock: socket.socket) -> web.AppRunner:
    """Answer on `sock` until the runner is cleaned up."""
    runner = web.AppRunner(
        application(house),
        handler_cancellation=True,
        access_log=None,
        logger=house.logs.of_server(HttpProcessingError, ConnectionError),
        shutdown_timeout=SHUTDOWN,
        max_field_size=HEADER_BYTES,
    )
    await runner.setup()
    await web.SockSite(runner, sock).start()
    return runner
