"""From tokens to text that may be sent: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs


class TextOutput:
    """The text of one generation, as it grows.

    A character is given out when its last byte is there. Text that may turn out to be the
    beginning of a stop string is held back until it is known not to be. Pure: no model here.
    """

    def __init__(self, stops: list[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._bytes = b""
        """The beginning of a character; dropped if the generation ends here."""
        self._held = ""
        """Text that a stop string may begin with."""
        self.stopped = False
        """A stop string came; nothing follows."""
        self.stop_word = ""
        """Which one it was."""

    def push(self, piece: str | bytes) -> str:
        """Takes a token's piece, returns the text that is now certain (often all of it)."""
        if self._bytes or isinstance(piece, bytes):
            data = self._bytes + (piece.encode() if isinstance(piece, str) else piece)
            piece, used = codecs.utf_8_decode(data, "replace", False)
            self._bytes = data[used:]
        return self._release(piece) if self._stops else piece

    def rest(self) -> str:
        """What is still held back, once it is known that nothing follows."""
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
    """Length of the longest end of `text` that `stop` goes on from."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
