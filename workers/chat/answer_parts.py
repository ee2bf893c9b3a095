"""What an answer is made of, and what a reader of calls has to be."""

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
    """A call begins."""

    name: str


@dataclass(frozen=True)
class ArgumentsPart:
    """More of the last call's arguments: JSON when put together."""

    text: str


Piece = ContentPart | ReasoningPart | ToolCall | ArgumentsPart
Emit = Callable[[Piece], None]


class Buffer:
    """Text that came and is not understood yet."""

    def __init__(self) -> None:
        self.text = ""
        self.final = False
        """Nothing follows."""

    def take(self, length: int) -> str:
        """Removes and returns the beginning."""
        taken, self.text = self.text[:length], self.text[length:]
        return taken

    def skip_blanks(self) -> None:
        """Removes white space from the beginning."""
        self.text = self.text.lstrip()


class ParserState(Enum):
    """How far a reader is."""

    MORE = "it needs more text"
    DONE = "the call is over"
    NONE = "this is no call"


class CallReader(Protocol):
    """Reads one call from the beginning of a buffer."""

    def read(self, buffer: Buffer, emit: Emit) -> ParserState:
        """Takes what it understands out of `buffer`. NONE: nothing was taken."""
