"""The `id:` lines in a worker's stream of events: taken out on the way, kept for going on."""

from __future__ import annotations

import msgspec

END = b"\n\n"
MOST = 2**20
"""Bytes of ids kept for one answer (some hundred thousand tokens), and of an unfinished event."""


class EventIds:
    """Turns what a worker sends into whole events without their ids, and remembers these.

    A stream that has none passes as it comes, and so does one from where it goes beyond the
    bounds; it can't be gone on with.
    """

    __slots__ = ("_ids", "_rest", "can_resume")

    def __init__(self) -> None:
        self._ids = bytearray()
        self._rest = b""
        self.can_resume = True
        """Whether all that has passed had ids, and they are still known."""

    @property
    def ids(self) -> bytes:
        """Those of all events that have passed, a line each."""
        return bytes(self._ids) if self.can_resume else b""

    def take(self, chunk: bytes) -> bytes:
        """What of the stream can be passed on now that this has come."""
        if self._rest:
            chunk, self._rest = self._rest + chunk, b""
        if not chunk.endswith(END):
            end = chunk.rfind(END) + len(END) if END in chunk else 0
            chunk, self._rest = chunk[:end], chunk[end:]
            if len(self._rest) > MOST:
                self.can_resume = False
                chunk, self._rest = chunk + self._rest, b""
        if chunk.startswith(b"id: ") and chunk.find(b"\nid: ") < 0:
            # One event: what comes at nearly every token.
            line, _, chunk = chunk.partition(b"\n")
            self._ids += line[4:] + b"\n"
        elif chunk:
            chunk = self._take_several(chunk)
        if len(self._ids) > MOST:
            self.can_resume = False
        return chunk

    def _take_several(self, events: bytes) -> bytes:
        passed = bytearray()
        *whole, rest = events.split(END)
        for event in whole:
            line, more, data = event.partition(b"\n")
            if line.startswith(b"id: "):
                self._ids += line[4:] + b"\n"
                passed += data + END if more else b"\n"
            else:
                # An error, or a worker that gives no ids for this path.
                self.can_resume = False
                passed += event + END
        return bytes(passed + rest)

    def rest(self) -> bytes:
        """At the stream's end: what came of an event that has no end."""
        return self._rest

    def resumption(self, request: bytes) -> bytes:
        """The body that asks another worker to go on with the answer to `request`."""
        self._rest = b""
        lines = self._ids.decode("utf-8", "replace").split("\n")[:-1]
        return b'{"request":' + request + b',"resume":' + msgspec.json.encode(lines) + b"}"
