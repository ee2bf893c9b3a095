"""The `id:` lines of a stream that another worker can go on with (see `resuming`)."""

from __future__ import annotations

from typing import Protocol

from workers.answers import Answers, Part
from workers.resuming import CLOSING, NOTHING, Call, lost
from workers.sequence import Timings

_END = b"\n\n"


class Writer(Protocol):
    """What a stream's events look like."""

    def opening(self) -> bytes:
        """What it begins with: nothing, or an event for each answer."""

    def news(self, part: Part) -> bytes:
        """What is written of a part."""

    def closing(self, timings: Timings) -> bytes:
        """What it ends with."""


class EventIds:
    """A writer that puts an `id:` line before each event of another, and leaves out those that
    were sent before."""

    def __init__(self, writer: Writer, answers: Answers, call: Call) -> None:
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

    def news(self, part: Part) -> bytes:
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
