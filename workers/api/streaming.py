"""Answers to the client, whole or as a stream of events.

Event ids, by which another worker can continue a stream, are added here (see `workers.protocol`).
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from aiohttp import web

from workers.api.answers import AnswerDelta, Answers
from workers.api.json_response import json_response
from workers.api.openai_responses import error_event
from workers.engine.metrics import Timings
from workers.errors import ApiError
from workers.protocol import ALL_ENDED, EVENT_END, NO_TOKENS, add_event_id, encode_tokens
from workers.requests.bodies import Generation, check, decode
from workers.requests.resume import ResumableCall, not_resumable, parse_call
from workers.service import WorkerService


class SseWriter(Protocol):
    """Formatter of the events of a stream."""

    def opening(self) -> bytes:
        """Return the first events: none, or one for each choice."""

    def update(self, part: AnswerDelta) -> bytes:
        """Return the events for a part of the answer."""

    def closing(self, timings: Timings) -> bytes:
        """Return the last events."""


class EventIdWriter:
    """Wrapper of a writer: adds event ids, and leaves out the events that were sent before."""

    def __init__(self, writer: SseWriter, answers: Answers, call: ResumableCall) -> None:
        self._writer = writer
        self._answers = answers
        self._head = "" if call.sent else call.response_identity.encode()
        """Prefix of the next event id."""
        self._reported = [0] * answers.count
        """Tokens of each choice that the ids so far have reported."""
        self._sent = list(map(call.events, range(answers.count)))
        """Events of each choice that are still to be left out."""
        self._closed = call.closed

    def opening(self) -> bytes:
        """See SseWriter."""
        events = self._writer.opening().split(EVENT_END)[:-1]
        return b"".join(self._event(place, NO_TOKENS, event) for place, event in enumerate(events))

    def update(self, part: AnswerDelta) -> bytes:
        """See SseWriter."""
        written = self._writer.update(part)
        if not written:
            return b""
        place = part.index
        drawn = self._answers.drawn(place, self._reported[place], part.generated)
        self._reported[place] = part.generated
        line = encode_tokens(0, drawn)
        if not (place or self._sent[place] or self._head or written.count(EVENT_END) > 1):
            return add_event_id(line, written)  # The case of nearly every token.
        events = written.split(EVENT_END)[:-1]
        lines = [line, *[NO_TOKENS] * (len(events) - 1)]
        return b"".join(map(self._event, [place] * len(events), lines, events))

    def closing(self, timings: Timings) -> bytes:
        """See SseWriter. Raise ApiError if the answer ended before the events sent already."""
        if any(self._sent):
            raise not_resumable("it ended before the events that were sent already")
        events = self._writer.closing(timings).split(EVENT_END)[self._closed : -1]
        return b"".join(self._with_id(ALL_ENDED, event) for event in events)

    def _event(self, place: int, drawn: str, event: bytes) -> bytes:
        if self._sent[place]:
            self._sent[place] -= 1
            return b""
        return self._with_id(f"{place}={drawn}" if place else drawn, event)

    def _with_id(self, line: str, event: bytes) -> bytes:
        head, self._head = self._head, ""
        return add_event_id(head + line, event + EVENT_END)


G = TypeVar("G", bound=Generation)

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # Otherwise nginx buffers the tokens.
}


class StreamShape(SseWriter, Protocol):
    """Formatter of the answers of an endpoint."""

    def response(self, parts: list[AnswerDelta], timings: Timings) -> object:
        """Return the body of an answer that is not streamed: a part for each choice."""


async def read_call(
    http: web.Request, worker: WorkerService, kind: type[G]
) -> tuple[ResumableCall, G]:
    """Read the whole request, its body as a checked `kind`, and prepare the worker for it.

    Raise ApiError 400, and 409 for the rest of an answer that began with another worker's
    identity.
    """
    call = parse_call(http.path, http.headers, await http.read(), worker.identity)
    request = decode(call.body, kind)
    check(request)
    await worker.prepare(request)
    return call, request


async def respond(
    http: web.Request, call: ResumableCall, answers: Answers, shape: StreamShape, *, streaming: bool
) -> web.StreamResponse:
    """Send the answer, whole or as a stream. It is cancelled when the client disconnects."""
    if call.sent is not None and not streaming:
        raise ApiError(400, "Only a stream can be resumed.", param="stream")
    answers.start()
    try:
        if not streaming:
            parts = await answers.whole()
            return json_response(shape.response(parts, answers.timings))
        writer = EventIdWriter(shape, answers, call) if call.resumable else shape
        response = web.StreamResponse(headers=STREAM_HEADERS)
        written = writer.opening()
        while not answers.ended:
            try:
                parts = await answers.next()
                written += b"".join(map(writer.update, parts))
                written += writer.closing(answers.timings) if answers.ended else b""
            except ApiError as error:
                if not response.prepared:
                    raise  # An error before the first bytes is answered with a status.
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
