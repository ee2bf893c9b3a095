"""Incremental detokenizer: whole characters only, and no part of a stop string."""

from __future__ import annotations

import codecs


class TextOutput:
    """The growing text of one generation. Pure: no model.

    A character is emitted with its last byte. Text that may be the beginning of a stop string is
    held back until it is known not to be.
    """

    def __init__(self, stops: list[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._bytes = b""
        """Bytes of an incomplete character; dropped if the generation ends here."""
        self._held = ""
        """Text that may be the beginning of a stop string."""
        self.stopped = False
        """True after a stop string; no text follows."""
        self.stop_word = ""
        """The stop string that was found, or empty."""

    def push(self, piece: str | bytes) -> str:
        """Take the piece of a token; return the text that is certain now, often all of it."""
        if self._bytes or isinstance(piece, bytes):
            data = self._bytes + (piece.encode() if isinstance(piece, str) else piece)
            piece, used = codecs.utf_8_decode(data, "replace", False)
            self._bytes = data[used:]
        return self._release(piece) if self._stops else piece

    def rest(self) -> str:
        """Return the text that is still held back, at the end of the generation."""
        held, self._held = self._held, ""
        return "" if self.stopped else held

    def _release(self, text: str) -> str:
        text = self._held + text
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.stop_word = min(found)
            self.stopped = True
            self._held = ""
            return text[:at]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
