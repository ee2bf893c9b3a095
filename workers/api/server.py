"""The HTTP side of the process: listening before the model is there, draining at SIGTERM.

Keeps web pages away from a worker that belongs to a supervisor.

A page in a browser on this machine can send requests to any local port, and read the answers if a
name of its own resolves to this machine. The supervisor judges hosts and origins before it passes
a request on, and takes the origin out; so whatever comes with one did not come through it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
import time
from collections.abc import Mapping

from aiohttp import web

from workers.api.json_response import Handler, errors_as_json, json_response
from workers.api.llama_routes import CompletionRoutes, LlamaRoutes
from workers.api.openai_routes import OpenAIRoutes
from workers.api.slot_routes import AdapterRoutes, SlotRoutes
from workers.api.timeouts import ConnectionTimeouts, ParserLimits
from workers.errors import ApiError
from workers.heartbeat import HeartbeatSender
from workers.protocol import DRAINING_HEADER
from workers.service import WorkerService

STRAYED = frozenset({"cross-site", "same-site"})


def reject_browsers(headers: Mapping[str, str]) -> None:
    """Raises ApiError 403 for what a web page sent."""
    if "Origin" in headers or headers.get("Sec-Fetch-Site") in STRAYED:
        raise ApiError(403, "This worker answers no web page: ask swapd.", "permission_error")
    host = headers.get("Host", "")
    if not _is_address(host):
        sentence = f"This worker is not known as {host!r}: ask swapd, or call it by its address."
        raise ApiError(403, sentence, "permission_error")


def _is_address(host: str) -> bool:
    """Whether `host` is no name that somebody else could have made resolve to this machine."""
    name = host.rpartition(":")[0] if host[-1:].isdigit() and ":" in host else host
    if name.lower() in ("localhost", ""):
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


LARGEST_BODY = 64 * 1024 * 1024
RANKING = ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking")
LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}


class WorkerServer:
    """Answers on one socket from before the model is loaded until everything is served."""

    def __init__(
        self,
        limits: ParserLimits = ParserLimits(),  # noqa: B008  it is frozen
        *,
        owned: bool = False,
    ) -> None:
        """`owned`: all requests come through a supervisor, and none from web pages."""
        self._owned = owned
        self._patience = ConnectionTimeouts(limits)
        self._routes: dict[tuple[str, str], Handler] = {}
        self._active = 0
        self._draining = False
        self._status = 0
        self._pulse: HeartbeatSender | None = None
        self._listener: socket.socket | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._stop = asyncio.Event()
        self.stopped_at = 0.0
        """`time.monotonic()` when it was told to stop."""
        self._runner = web.AppRunner(
            self._application(),
            handler_cancellation=True,  # a client that goes away cancels its handler
            access_log=None,
            handle_signals=False,
        )

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Starts to answer; returns the address. Raises OSError if it can't have it."""
        await self._runner.setup()
        listener = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=512,
        )
        await web.SockSite(self._runner, listener).start()
        if self._runner.server is not None:
            self._patience.watch(self._runner.server)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        loop.add_signal_handler(signal.SIGINT, os._exit, 128 + signal.SIGINT)
        self._listener = listener
        address = listener.getsockname()
        return address[0], address[1]

    def serve(self, worker: WorkerService, pulse: HeartbeatSender) -> None:
        """From now on there is a model. `pulse` is told of its requests."""
        self._pulse = pulse
        openai, llama = OpenAIRoutes(worker), LlamaRoutes(worker)
        adapters = AdapterRoutes(worker)
        completion = CompletionRoutes(worker)
        generates = {
            "/v1/chat/completions": openai.chat,
            "/v1/completions": openai.complete,
            "/completion": completion.complete,
            "/completions": completion.complete,
            "/infill": completion.infill,
        }
        self._routes = {
            **{("POST", path): handler for path, handler in generates.items()},
            **{("POST", f"/resume{path}"): handler for path, handler in generates.items()},
            ("POST", "/v1/embeddings"): openai.embed,
            ("GET", "/v1/models"): openai.models,
            ("GET", "/props"): llama.props,
            ("GET", "/slots"): llama.slots,
            ("GET", "/lora-adapters"): adapters.list,
            ("POST", "/lora-adapters"): adapters.scale,
            ("POST", "/v1/load_lora_adapter"): adapters.load,
            ("POST", "/v1/unload_lora_adapter"): adapters.unload,
            ("POST", "/slots/*"): SlotRoutes(worker).act,
            ("GET", "/metrics"): llama.metrics,
            ("POST", "/tokenize"): llama.tokenize,
            ("POST", "/detokenize"): llama.detokenize,
            ("POST", "/apply-template"): llama.apply_template,
            **{("POST", path): completion.rerank for path in RANKING},
        }

    def stop(self, status: int) -> None:
        """Takes no more requests; `until_drained` will return `status`."""
        self._draining = True
        self._status = status
        self.stopped_at = time.monotonic()
        self._stop.set()

    async def until_drained(self) -> int:
        """Waits for SIGTERM, then for what is being served, then for its last bytes to go.

        Returns the exit status.
        """
        await self._stop.wait()
        await self._stop_accepting()
        await self._idle.wait()
        server = self._runner.server
        connections = [] if server is None else list(server.connections)
        transports = [c.transport for c in connections if c.transport is not None]
        await self._runner.cleanup()
        # asyncio tells nobody when a closed transport has sent its last bytes
        while any(transport.get_write_buffer_size() for transport in transports):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return self._status

    async def _stop_accepting(self) -> None:
        """Closes the listening socket, but not under a connection that was just accepted.

        asyncio makes the transport of an accepted connection in a later callback, and where the
        server has been closed by then, it forgets the connection: the client would wait for ever.
        """
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
        for _ in range(3):
            await asyncio.sleep(0)
        for site in list(self._runner.sites):
            await site.stop()

    def _on_sigterm(self) -> None:
        if self._draining:
            os._exit(128 + signal.SIGTERM)
        if not self._routes:
            os._exit(0)  # the model is still loading: there is nothing to finish
        self.stop(0)

    def _application(self) -> web.Application:
        application = web.Application(
            middlewares=[errors_as_json, self._counted], client_max_size=LARGEST_BODY
        )
        application.router.add_route("GET", "/health", self._health)
        application.router.add_route("*", "/{path:.*}", self._dispatch)
        return application

    @web.middleware
    async def _counted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Knows how many requests are being served; refuses new ones at the end."""
        if self._draining:
            stopping = ApiError(503, "The worker is stopping.", "unavailable_error")
            return json_response(stopping.body, stopping.status, {DRAINING_HEADER: "1"})
        self._active += 1
        self._idle.clear()
        pulse = self._pulse
        if pulse is not None:
            pulse.begin()
        self._patience.begin(request)
        try:
            return await handler(request)
        finally:
            self._patience.end(request)
            if pulse is not None:
                pulse.end()
            self._active -= 1
            if self._active == 0:
                self._idle.set()

    async def _health(self, _request: web.Request) -> web.Response:
        return json_response({"status": "ok"}) if self._routes else json_response(LOADING, 503)

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        """Routes by table, so that it can be filled when the model is there.

        A `*` in it stands for any last part of a path.
        """
        if self._owned:
            reject_browsers(request.headers)
        if not self._routes:
            return json_response(LOADING, 503)
        patterns = (request.path, request.path.rpartition("/")[0] + "/*")
        for pattern in patterns:
            handler = self._routes.get((request.method, pattern))
            if handler is not None:
                return await handler(request)
        methods = {method for method, path in self._routes if path in patterns}
        if methods:
            raise web.HTTPMethodNotAllowed(request.method, methods)
        raise web.HTTPNotFound
