"""Streams of chat answers as a client reads them, with what must hold of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from swapd.system.aio import now
from tests.daemon import Swapd, chat


@dataclass
class Stream:
    """Streamed answer, event by event, in a form that can be compared."""

    texts: list[str] = field(default_factory=list)
    names: set[tuple[str, int]] = field(default_factory=set)
    """Id and time of creation of the events: all have the same."""
    finish: str | None = None
    usage: int = 0
    """Generated tokens, from the end of the stream."""
    done: bool = False
    error: dict[str, Any] | None = None
    pause: float = 0.0
    """The longest time between two events."""
    _last: float = 0.0

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def whole(self) -> tuple[str, str | None, int, bool]:
        """Part that must be the same with and without faults."""
        assert self.error is None, self.error
        assert len(self.names) == 1, self.names
        return self.text, self.finish, self.usage, self.done

    def take(self, line: str) -> None:
        """Process a line of the stream."""
        if not line:
            return
        assert line.startswith("data: "), line
        if self._last:
            self.pause = max(self.pause, now() - self._last)
        self._last = now()
        if line == "data: [DONE]":
            self.done = True
            return
        event = msgspec.json.decode(line[6:])
        if "error" in event:
            self.error = event["error"]
            return
        self.names.add((event.get("id", ""), event.get("created", 0)))
        self.usage = (event.get("usage") or {}).get("completion_tokens", self.usage)
        for choice in event["choices"]:
            self.texts.append(choice["delta"].get("content") or "")
            self.finish = choice.get("finish_reason") or self.finish


def long_request(model: str, **fields: Any) -> dict[str, Any]:
    """Return the body of a request for a long answer with usage."""
    more = {"max_tokens": 900, "ignore_eos": True, "stream_options": {"include_usage": True}}
    return chat(model, stream=True, **{**more, **fields})


def follow(
    swapd: Swapd, body: dict[str, Any], path: str = "/v1/chat/completions"
) -> Iterator[Stream]:
    """Send the request; yield the stream after each line, the last time complete or broken."""
    stream = Stream()
    with swapd.http.stream("POST", path, json=body) as r:
        assert r.status_code == 200, r.read()
        lines = r.iter_lines()
        while True:
            try:
                line = next(lines, None)
            except httpx.RemoteProtocolError:
                assert stream.error is not None, "broken off without a word"
                break
            if line is None:
                break
            stream.take(line)
            yield stream
    yield stream


def read(swapd: Swapd, body: dict[str, Any]) -> Stream:
    """Return the stream after its end."""
    *_, stream = follow(swapd, body)
    return stream
