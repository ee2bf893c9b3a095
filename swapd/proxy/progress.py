"""Telling a client of a stream how far its turn is, while it waits for its model.

Two ways: comments between the events, which every client of server-sent events ignores, for a
request with the header `X-Swapd-Progress: 1`; and llama-swap's `sendLoadingState`, pieces of
`reasoning_content`, which clients of chats show. Either begins the answer before a worker has it.
So it is only done where the request is for a stream, and not in the first moment: who need not wait
is told nothing, and a refusal that comes at once keeps its status.
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
FIRST = 0.25
"""Seconds of waiting after which a client is told for the first time."""
PAUSE = 1.0
"""Seconds from one look to the next; what has not changed is not told again."""
QUIET = 15.0
"""Seconds after which it is told again all the same, so that nobody takes the line for dead."""


def wants_progress(request: web.Request, spec: ModelSpec, streams: bool) -> bool:
    """Whether this client is to be told."""
    return streams and (
        _header(request) or (spec.serving.send_loading_state and request.path == CHAT)
    )


def _header(request: web.Request) -> bool:
    return request.headers.get(PROGRESS_HEADER, "0").strip().lower() not in ("", "0", "false")


class ProgressReporter:
    """Somebody who waits and is told how it stands: the answer of `passage` is begun for that."""

    def __init__(
        self,
        supervisor: Supervisor,
        log: Logger,
        request: web.Request,
        spec: ModelSpec,
        passage: Exchange,
    ) -> None:
        self._passage = passage
        self._supervisor = supervisor
        self._tasks = Tasks(log)
        self._request = request
        self._spec = spec
        self._ahead = supervisor.waiting(spec.name)
        self._over = asyncio.Event()

    async def until(self, coming: Awaitable[Lease]) -> Lease:
        """What is waited for; raises as it does."""
        teller = self._tasks.run(self._tell(), f"progress of {self._spec.name}")
        try:
            return await coming
        finally:
            # It ends by itself: cancelled, it might have begun the answer by half.
            self._over.set()
            await asyncio.wait({teller})

    async def _tell(self) -> None:
        before, silent, pause = "", 0.0, FIRST
        while not await self._is_over_within(pause):
            words = _words(self._supervisor.queue_estimate(self._spec.name), self._ahead)
            silent, pause = silent + pause, PAUSE
            if words == before and silent < QUIET:
                continue
            try:
                if self._passage.response is None:
                    self._passage.response = await _begun(self._request)
                await self._passage.response.write(_line(self._request, self._spec, words))
            except ConnectionResetError:
                return  # The client has gone, and who waits for it is told so.
            before, silent = words, 0.0

    async def _is_over_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._over.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True


def _words(outlook: QueueEstimate, ahead: int) -> str:
    if outlook.loading_for is not None:
        if outlook.usual_load:
            return f"loading {min(99, int(100 * outlook.loading_for / outlook.usual_load))} %"
        return f"loading for {outlook.loading_for:.0f} s"
    place = max(1, min(ahead + 1, outlook.waiting))
    return f"queued {place}" if outlook.ready else f"queued {place}, its model waits for room"


async def _begun(request: web.Request) -> web.StreamResponse:
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    response = web.StreamResponse(headers={**headers, "X-Accel-Buffering": "no"})
    await response.prepare(request)
    return response


def _line(request: web.Request, spec: ModelSpec, words: str) -> bytes:
    if _header(request):
        return f": {words}\n\n".encode()
    delta = {"role": "assistant", "reasoning_content": f"swapd: {spec.name}: {words}\n"}
    event = {
        "id": "chatcmpl-swapd",
        "object": "chat.completion.chunk",
        "created": int(wall()),
        "model": spec.name,
        "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
    }
    return b"data: " + msgspec.json.encode(event) + b"\n\n"
