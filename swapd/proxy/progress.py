"""Progress reports to clients of streams that wait for their model.

There are two forms: comments between the events, which all clients of server-sent events ignore,
for a request with the header `X-Swapd-Progress: 1`; and llama-swap's `sendLoadingState`, pieces of
`reasoning_content`, which chat clients display. Both start the response before a worker has the
request. So reports are sent only for streams, and not in the first moment: a request that is served
at once gets none, and an immediate rejection keeps its status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from logging import Logger

import msgspec
from aiohttp import web

from swapd.domain.models import ModelSpec
from swapd.domain.status import QueueEstimate
from swapd.leases import Lease
from swapd.proxy.forward import Exchange
from swapd.supervisor import Supervisor
from swapd.system.aio import Tasks, wall
from workers.protocol import PROGRESS_HEADER

CHAT = "/v1/chat/completions"
FIRST_DELAY = 0.25
"""Seconds of waiting before the first report."""
INTERVAL = 1.0
"""Seconds between checks; an unchanged report is not repeated."""
MAX_SILENCE = 15.0
"""Seconds after which an unchanged report is repeated, so that the connection is not taken for
dead."""


def wants_progress(request: web.Request, spec: ModelSpec, streams: bool) -> bool:
    """Return True if this client gets progress reports."""
    return streams and (
        _requests_comments(request) or (spec.serving.send_loading_state and request.path == CHAT)
    )


def _requests_comments(request: web.Request) -> bool:
    return request.headers.get(PROGRESS_HEADER, "0").strip().lower() not in ("", "0", "false")


class ProgressReporter:
    """Sender of progress reports for one waiting request; it starts the response of `exchange`."""

    def __init__(
        self,
        supervisor: Supervisor,
        log: Logger,
        request: web.Request,
        spec: ModelSpec,
        exchange: Exchange,
    ) -> None:
        self._exchange = exchange
        self._supervisor = supervisor
        self._tasks = Tasks(log)
        self._request = request
        self._spec = spec
        self._ahead = supervisor.waiting(spec.name)
        self._done = asyncio.Event()

    async def until(self, pending: Awaitable[Lease]) -> Lease:
        """Report progress until the lease is granted, and return it. Raises as `pending` does."""
        reports = self._tasks.run(self._report(), f"progress of {self._spec.name}")
        try:
            return await pending
        finally:
            # Not cancelled: that could leave the head of the response half sent.
            self._done.set()
            await asyncio.wait({reports})

    async def _report(self) -> None:
        previous, silent, pause = "", 0.0, FIRST_DELAY
        while not await self._is_done_within(pause):
            text = _text(self._supervisor.queue_estimate(self._spec.name), self._ahead)
            silent, pause = silent + pause, INTERVAL
            if text == previous and silent < MAX_SILENCE:
                continue
            try:
                if self._exchange.response is None:
                    self._exchange.response = await _start_response(self._request)
                await self._exchange.response.write(_event(self._request, self._spec, text))
            except ConnectionResetError:
                return  # The client has disconnected, which ends `pending` as well.
            previous, silent = text, 0.0

    async def _is_done_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._done.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True


def _text(estimate: QueueEstimate, ahead: int) -> str:
    if estimate.loading_for is not None:
        if estimate.usual_load:
            return f"loading {min(99, int(100 * estimate.loading_for / estimate.usual_load))} %"
        return f"loading for {estimate.loading_for:.0f} s"
    place = max(1, min(ahead + 1, estimate.waiting))
    return f"queued {place}" if estimate.ready else f"queued {place}, its model waits for capacity"


async def _start_response(request: web.Request) -> web.StreamResponse:
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    response = web.StreamResponse(headers={**headers, "X-Accel-Buffering": "no"})
    await response.prepare(request)
    return response


def _event(request: web.Request, spec: ModelSpec, text: str) -> bytes:
    if _requests_comments(request):
        return f": {text}\n\n".encode()
    delta = {"role": "assistant", "reasoning_content": f"swapd: {spec.name}: {text}\n"}
    event = {
        "id": "chatcmpl-swapd",
        "object": "chat.completion.chunk",
        "created": int(wall()),
        "model": spec.name,
        "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
    }
    return b"data: " + msgspec.json.encode(event) + b"\n\n"
