"""Event ids in a worker's stream: removed from it, and stored to resume the stream."""

from __future__ import annotations

from workers.protocol import EVENT_END, encode_resumption, has_one_event_id, split_event_id

MOST = 2**20
"""Bytes of stored ids for one answer (some hundred thousand tokens), and of an unfinished event."""


class EventIds:
    """Parser that turns received bytes into whole events without ids, and stores the ids.

    A stream without ids passes unchanged, and so does the rest of a stream beyond the limits;
    neither can be resumed.
    """

    __slots__ = ("_ids", "_rest", "can_resume")

    def __init__(self) -> None:
        self._ids = bytearray()
        self._rest = b""
        self.can_resume = True
        """True if all events so far had ids, and these are stored."""

    @property
    def ids(self) -> bytes:
        """Ids of all events that have passed, a line each."""
        return bytes(self._ids) if self.can_resume else b""

    def take(self, chunk: bytes) -> bytes:
        """Add received bytes and return the part of the stream that is complete."""
        if self._rest:
            chunk, self._rest = self._rest + chunk, b""
        if not chunk.endswith(EVENT_END):
            end = chunk.rfind(EVENT_END) + len(EVENT_END) if EVENT_END in chunk else 0
            chunk, self._rest = chunk[:end], chunk[end:]
            if len(self._rest) > MOST:
                self.can_resume = False
                chunk, self._rest = chunk + self._rest, b""
        if has_one_event_id(chunk):
            # One event: the case of nearly every token.
            event_id, chunk = split_event_id(chunk)
            assert event_id is not None
            self._ids += event_id + b"\n"
        elif chunk:
            chunk = self._take_several(chunk)
        if len(self._ids) > MOST:
            self.can_resume = False
        return chunk

    def _take_several(self, events: bytes) -> bytes:
        passed = bytearray()
        *whole, rest = events.split(EVENT_END)
        for event in whole:
            event_id, data = split_event_id(event)
            if event_id is None:
                # An error, or a worker that gives no ids for this path.
                self.can_resume = False
                passed += event + EVENT_END
            else:
                self._ids += event_id + b"\n"
                passed += data + EVENT_END if b"\n" in event else b"\n"
        return bytes(passed + rest)

    def rest(self) -> bytes:
        """Return the bytes of an event that the end of the stream cut off."""
        return self._rest

    def resumption(self, request: bytes) -> bytes:
        """Return the body that makes another worker continue the answer to `request`."""
        self._rest = b""
        return encode_resumption(request, self._ids.decode("utf-8", "replace").split("\n")[:-1])
