"""Where in a growing answer a call begins. Pure: text in, what follows the mark out."""

from __future__ import annotations

from collections.abc import Collection

from workers.answer_parser import END_THINK, THINK


class CallStart:
    """Watches one answer for the first mark of a call that is no part of a thought."""

    def __init__(self, marks: Collection[str], *, thinking: bool = False) -> None:
        """`thinking`: it begins within a thought."""
        self._marks = marks
        self._kept = max(map(len, (*marks, THINK, END_THINK))) - 1
        """Characters that may be the beginning of something."""
        self._thinking = thinking
        self._text = ""

    def see(self, text: str) -> str | None:
        """More of the answer; what follows the mark, as soon as that is there."""
        self._text += text
        while True:
            wanted = (END_THINK,) if self._thinking else (*self._marks, THINK)
            found = [(at, mark) for mark in wanted if (at := self._text.find(mark)) >= 0]
            if not found:
                self._text = self._text[-self._kept :]
                return None
            at, mark = min(found)
            self._text = self._text[at + len(mark) :]
            if mark not in (THINK, END_THINK):
                return self._text
            self._thinking = mark == THINK
