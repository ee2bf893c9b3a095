"""The HTTP server: it listens before the model is loaded, and drains at SIGTERM.

A supervised worker rejects requests from web pages. A page in a browser on the same machine can
send requests to any local port, and can read the responses if its host name resolves to the
machine (DNS rebinding). The supervisor checks hosts and origins before it forwards a request, and
removes the `Origin` header; so a request with that header did not come through the supervisor.
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
from workers.connection_timeouts import ConnectionLimits, ConnectionTimeouts
from workers.errors import ApiError
from workers.heartbeat import HeartbeatSender
from workers.protocol import DRAINING_HEADER
from workers.service import WorkerService

CROSS_ORIGIN_SITES = frozenset({"cross-site", "same-site"})


def reject_browsers(headers: Mapping[str, str]) -> None:
    """Raise ApiError 403 if a web page sent the request."""
    if "Origin" in headers or headers.get("Sec-Fetch-Site") in CROSS_ORIGIN_SITES:
        sentence = "This worker rejects requests from web pages; send them to swapd."
        raise ApiError(403, sentence, "permission_error")
    host = headers.get("Host", "")
    if not _is_address(host):
        sentence = f"This worker rejects host {host!r}; use swapd, or the worker's IP address."
        raise ApiError(403, sentence, "permission_error")


def _is_address(host: str) -> bool:
    """True if `host` is an IP address or localhost, which no foreign DNS server can control."""
    name = host.rpartition(":")[0] if host[-1:].isdigit() and ":" in host else host
    if name.lower() in ("localhost", ""):
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


MAX_BODY = 64 * 1024 * 1024
"""Bytes of a request body."""
RERANK_PATHS = ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking")
LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}


class WorkerServer:
    """A listening socket, open from before the model is loaded until all requests are served."""

    def __init__(
        self,
        limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008  it is frozen
        *,
        owned: bool = False,
    ) -> None:
        """Make a server; `owned`: a supervisor forwards all requests, none are from web pages."""
        self._owned = owned
        self._timeouts = ConnectionTimeouts(limits)
        self._routes: dict[tuple[str, str], Handler] = {}
        self._active = 0
        self._draining = False
        self._status = 0
        self._heartbeat: HeartbeatSender | None = None
        self._listener: socket.socket | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._stop = asyncio.Event()
        self.stopped_at = 0.0
        """`time.monotonic()` when `stop` was called; 0 before."""
        self._runner = web.AppRunner(
            self._application(),
            handler_cancellation=True,  # a disconnected client cancels its handler
            access_log=None,
            handle_signals=False,
        )

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Listen; return the bound address. Raises OSError if the address is not available."""
        await self._runner.setup()
        listener = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=512,
        )
        await web.SockSite(self._runner, listener).start()
        if self._runner.server is not None:
            self._timeouts.watch(self._runner.server)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        loop.add_signal_handler(signal.SIGINT, os._exit, 128 + signal.SIGINT)
        self._listener = listener
        address = listener.getsockname()
        return address[0], address[1]

    def serve(self, worker: WorkerService, heartbeat: HeartbeatSender) -> None:
        """Open the routes of a loaded model. `heartbeat` counts its requests."""
        self._heartbeat = heartbeat
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
            **{("POST", path): completion.rerank for path in RERANK_PATHS},
        }

    def stop(self, status: int) -> None:
        """Stop accepting requests; `until_drained` will return `status`."""
        self._draining = True
        self._status = status
        self.stopped_at = time.monotonic()
        self._stop.set()

    async def until_drained(self) -> int:
        """Wait for `stop`, for open requests, and for their last bytes; return the exit status."""
        await self._stop.wait()
        await self._stop_accepting()
        await self._idle.wait()
        server = self._runner.server
        connections = [] if server is None else list(server.connections)
        transports = [c.transport for c in connections if c.transport is not None]
        await self._runner.cleanup()
        # asyncio has no event for a closed transport that has sent its last bytes
        while any(transport.get_write_buffer_size() for transport in transports):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return self._status

    async def _stop_accepting(self) -> None:
        """Close the listening socket without losing a connection that was just accepted.

        asyncio makes the transport of an accepted connection in a later callback. If the server
        has been closed by then, it drops the connection, and the client would wait for ever.
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
            os._exit(0)  # the model is still loading: there are no requests to finish
        self.stop(0)

    def _application(self) -> web.Application:
        application = web.Application(
            middlewares=[errors_as_json, self._counted], client_max_size=MAX_BODY
        )
        application.router.add_route("GET", "/health", self._health)
        application.router.add_route("*", "/{path:.*}", self._dispatch)
        return application

    @web.middleware
    async def _counted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count the requests in progress; reject new ones while draining."""
        if self._draining:
            stopping = ApiError(503, "The worker is stopping.", "unavailable_error")
            return json_response(stopping.body, stopping.status, {DRAINING_HEADER: "1"})
        self._active += 1
        self._idle.clear()
        heartbeat = self._heartbeat
        if heartbeat is not None:
            heartbeat.begin()
        try:
            return await handler(request)
        finally:
            if heartbeat is not None:
                heartbeat.end()
            self._active -= 1
            if self._active == 0:
                self._idle.set()

    async def _health(self, _request: web.Request) -> web.Response:
        return json_response({"status": "ok"}) if self._routes else json_response(LOADING, 503)

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        """Route by a table, because aiohttp's router is frozen before the model is loaded.

        A `*` in the table matches any last segment of a path.
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
