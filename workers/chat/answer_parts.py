"""Parts of a parsed answer, the parser's buffer, and the protocol of tool-call readers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


@dataclass(frozen=True)
class ContentPart:
    """Text for the user."""

    text: str


@dataclass(frozen=True)
class ReasoningPart:
    """Text between think tags."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """The start of a tool call."""

    name: str


@dataclass(frozen=True)
class ArgumentsPart:
    """A fragment of the last call's arguments; all fragments together are JSON."""

    text: str


Piece = ContentPart | ReasoningPart | ToolCall | ArgumentsPart
Emit = Callable[[Piece], None]


class Buffer:
    """Received text that is not parsed yet."""

    def __init__(self) -> None:
        self.text = ""
        self.final = False
        """True if no more text follows."""

    def take(self, length: int) -> str:
        """Remove and return the first `length` characters."""
        taken, self.text = self.text[:length], self.text[length:]
        return taken

    def skip_blanks(self) -> None:
        """Remove white space from the beginning."""
        self.text = self.text.lstrip()


class ParserState(Enum):
    """State of a tool-call reader."""

    MORE = "more text is needed"
    DONE = "the call is complete"
    NONE = "the text is no call"


class CallReader(Protocol):
    """A reader of one tool call at the beginning of a buffer."""

    def read(self, buffer: Buffer, emit: Emit) -> ParserState:
        """Remove parsed text from `buffer` and emit its parts. NONE: no text was removed."""
