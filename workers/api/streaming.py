"""Answers on their way to the client: whole, or as a stream of events.

The `id:` lines of a stream that another worker can go on with (see `resuming`).
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from aiohttp import web

from workers.api.answers import AnswerDelta, Answers
from workers.api.json_response import json_response
from workers.api.openai_responses import error_event
from workers.engine.metrics import Timings
from workers.errors import ApiError
from workers.requests.bodies import Generation, check, decode
from workers.requests.resume import CLOSING, NOTHING, ResumedCall, call_of, lost
from workers.service import WorkerService

_END = b"\n\n"


class SseWriter(Protocol):
    """What a stream's events look like."""

    def opening(self) -> bytes:
        """What it begins with: nothing, or an event for each answer."""

    def news(self, part: AnswerDelta) -> bytes:
        """What is written of a part."""

    def closing(self, timings: Timings) -> bytes:
        """What it ends with."""


class EventIds:
    """A writer that puts an `id:` line before each event of another, and leaves out those that
    were sent before."""

    def __init__(self, writer: SseWriter, answers: Answers, call: ResumedCall) -> None:
        self._writer = writer
        self._answers = answers
        self._head = "" if call.past else call.birth.line
        """What the next line begins with."""
        self._told = [0] * answers.count
        """Tokens of each answer that are in the lines so far."""
        self._sent = list(map(call.events, range(answers.count)))
        """Events of each answer that are to be left out yet."""
        self._closed = call.closed

    def opening(self) -> bytes:
        """As Writer promises."""
        events = self._writer.opening().split(_END)[:-1]
        return b"".join(self._event(place, NOTHING, event) for place, event in enumerate(events))

    def news(self, part: AnswerDelta) -> bytes:
        """As Writer promises."""
        written = self._writer.news(part)
        if not written:
            return b""
        place = part.index
        drawn = self._answers.drawn(place, self._told[place], part.generated)
        self._told[place] = part.generated
        line = ",".join(map(str, drawn)) or NOTHING
        if not (place or self._sent[place] or self._head or written.count(_END) > 1):
            return b"id: %s\n%s" % (line.encode(), written)  # nearly all are so
        events = written.split(_END)[:-1]
        lines = [line, *[NOTHING] * (len(events) - 1)]
        return b"".join(map(self._event, [place] * len(events), lines, events))

    def closing(self, timings: Timings) -> bytes:
        """As Writer promises. Raises ApiError if there was less to be left out than was sent."""
        if any(self._sent):
            raise lost("it has ended before what was sent of it")
        events = self._writer.closing(timings).split(_END)[self._closed : -1]
        return b"".join(self._labelled(CLOSING, event) for event in events)

    def _event(self, place: int, drawn: str, event: bytes) -> bytes:
        if self._sent[place]:
            self._sent[place] -= 1
            return b""
        return self._labelled(f"{place}={drawn}" if place else drawn, event)

    def _labelled(self, line: str, event: bytes) -> bytes:
        head, self._head = self._head, ""
        return b"id: %s%s\n%s\n\n" % (head.encode(), line.encode(), event)


G = TypeVar("G", bound=Generation)

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # else nginx collects the tokens
}


class StreamShape(SseWriter, Protocol):
    """What an endpoint's answers look like."""

    def response(self, parts: list[AnswerDelta], timings: Timings) -> object:
        """The body that is not streamed: a part for each answer."""


async def read_call(
    http: web.Request, worker: WorkerService, kind: type[G]
) -> tuple[ResumedCall, G]:
    """Reads the request whole, its body as a checked `kind`, and prepares the worker for it.

    Raises ApiError 400, and 409 for the rest of an answer that began with another worker's
    identity.
    """
    call = call_of(http.path, http.headers, await http.read(), worker.identity)
    request = decode(call.body, kind)
    check(request)
    await worker.prepare(request)
    return call, request


async def respond(
    http: web.Request, call: ResumedCall, answers: Answers, shape: StreamShape, *, streaming: bool
) -> web.StreamResponse:
    """Answers whole or as a stream. A client that goes ends it."""
    if call.past is not None and not streaming:
        raise ApiError(400, "Only a stream can be gone on with.", param="stream")
    answers.start()
    try:
        if not streaming:
            parts = await answers.whole()
            return json_response(shape.response(parts, answers.timings))
        writer = EventIds(shape, answers, call) if call.resumable else shape
        response = web.StreamResponse(headers=STREAM_HEADERS)
        written = writer.opening()
        while not answers.ended:
            try:
                parts = await answers.next()
                written += b"".join(map(writer.news, parts))
                written += writer.closing(answers.timings) if answers.ended else b""
            except ApiError as error:
                if not response.prepared:
                    raise  # what fails before it has an answer fails with a status
                written = error_event(str(error))
                break
            if written and not answers.ended:
                if not response.prepared:
                    await response.prepare(http)
                await response.write(written)
                written = b""
        if not response.prepared:
            await response.prepare(http)
        await response.write(written)
        await response.write_eof()
        return response
    finally:
        answers.cancel()
