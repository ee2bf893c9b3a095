"""Answers on their way to the client: whole, or as a stream of events."""

from __future__ import annotations

from typing import Protocol, TypeVar

from aiohttp import web

from workers.answers import Answers, Part
from workers.errors import ApiError
from workers.event_ids import EventIds, Writer
from workers.http_json import json_response
from workers.openai_requests import Generation, check, decode
from workers.openai_responses import error_event
from workers.resuming import Call, call_of
from workers.sequence import Timings
from workers.worker import Worker

G = TypeVar("G", bound=Generation)

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # else nginx collects the tokens
}


class Shape(Writer, Protocol):
    """What an endpoint's answers look like."""

    def response(self, parts: list[Part], timings: Timings) -> object:
        """The body that is not streamed: a part for each answer."""


async def read_call(http: web.Request, worker: Worker, kind: type[G]) -> tuple[Call, G]:
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
    http: web.Request, call: Call, answers: Answers, shape: Shape, *, streaming: bool
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
