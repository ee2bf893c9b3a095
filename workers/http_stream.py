"""Answers on their way to the client: whole, or as a stream of events."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from workers.answers import Answers, Part
from workers.errors import ApiError
from workers.http_json import json_response
from workers.openai_responses import error_event
from workers.sequence import Timings

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # else nginx collects the tokens
}


class Writer(Protocol):
    """What an endpoint's answers look like."""

    def response(self, parts: list[Part], timings: Timings) -> object:
        """The body that is not streamed: a part for each answer."""

    def opening(self) -> bytes:
        """What a stream begins with."""

    def news(self, part: Part) -> bytes:
        """What is written of a part."""

    def closing(self, timings: Timings) -> bytes:
        """What a stream ends with."""


def tenant_of(http: web.Request) -> str:
    """Who asks, as far as fairness goes; empty if the headers don't tell."""
    return http.headers.get("X-Tenant-Id", "")


async def respond(
    http: web.Request, answers: Answers, writer: Writer, *, streaming: bool
) -> web.StreamResponse:
    """Answers whole or as a stream. A client that goes ends it."""
    answers.start()
    try:
        if not streaming:
            parts = await answers.whole()
            return json_response(writer.response(parts, answers.timings))
        parts = await answers.next()  # what fails before it has an answer fails with a status
        response = web.StreamResponse(headers=STREAM_HEADERS)
        await response.prepare(http)
        written = writer.opening()
        while True:
            written += b"".join(map(writer.news, parts))
            if answers.ended:
                written += writer.closing(answers.timings)
                break
            if written:
                await response.write(written)
                written = b""
            try:
                parts = await answers.next()
            except ApiError as error:
                written = error_event(str(error))
                break
        await response.write(written)
        await response.write_eof()
        return response
    finally:
        answers.cancel()
