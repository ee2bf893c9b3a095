"""A streaming parser that splits an answer into reasoning, content and tool calls.

Markers are never part of the output, not even in part; text that only resembles a marker is
content. The parser is pure, and its result does not depend on how the text is cut into chunks.

`CallStart` is the detector that finds the first tool call in an answer while it is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Any

from workers.chat.answer_parts import (
    Buffer,
    CallReader,
    ContentPart,
    ParserState,
    Piece,
    ReasoningPart,
    ToolCall,
)

THINK, END_THINK = "<think>", "</think>"
END_CALL = "</tool_call>"


class Dialect(Enum):
    """A model family's syntax of tool calls."""

    HERMES = "<tool_call>{json}</tool_call>: Hermes, Qwen"
    TAGS = "<tool_call><function=…><parameter=…>: Qwen3-coder"
    LLAMA = "{json}, or <|python_tag|>{json}: Llama 3"
    MISTRAL = "[TOOL_CALLS][{json}]: Mistral"
    MISTRAL_NAMED = "[TOOL_CALLS]name[ARGS]{json}: Mistral's later models"


MARKERS: Mapping[Dialect | None, tuple[str, ...]] = {
    None: (),
    Dialect.HERMES: ("<tool_call>",),
    Dialect.TAGS: ("<tool_call>", "<function="),
    Dialect.LLAMA: ("<|python_tag|>",),
    Dialect.MISTRAL: ("[TOOL_CALLS]",),
    Dialect.MISTRAL_NAMED: ("[TOOL_CALLS]",),
}
"""Markers at the start of a call."""


CONTROL_MARKERS = (
    THINK, END_THINK, "<tool_call>", END_CALL, "<|python_tag|>", "[TOOL_CALLS]", "[CALL_ID]",
    "[ARGS]",
)  # fmt: skip
"""Markers that may be control tokens in a vocabulary, and that the parser has to see as text."""


class OutputParser:
    """A parser for one answer: a state machine over a buffer."""

    def __init__(
        self, dialect: Dialect | None, schemas: Mapping[str, Any], *, thinking: bool = False
    ) -> None:
        """Take the dialect, None without tools, and the tools' parameter schemas by name.

        `thinking`: the prompt ends with an open think tag.
        """
        self._dialect = dialect
        self._markers = MARKERS[dialect]
        self._schemas = schemas
        self._buffer = Buffer()
        self._pieces: list[Piece] = []
        self._blanks = ""
        """White space that is output only if more text of the same kind follows."""
        self._drops_blanks = True
        """True if white space before the next text is dropped."""
        self._reader: CallReader | None = None
        self._undo = ""
        """Text that becomes content if the reader finds no call."""
        self._in_list = False
        """True between the brackets of Mistral's list."""
        self._step: Callable[[], bool] = self._reason if thinking else self._begin
        self.passthrough = False
        """True if all further text is content without changes."""

    def feed(self, text: str) -> list[Piece]:
        """Add text; return the parts that are certain now."""
        self._buffer.text += text
        while self._step():
            pass
        return self._taken()

    def finish(self) -> list[Piece]:
        """Mark the end of the text; return the parts that were held back."""
        self._buffer.final = True
        while self._step():
            pass
        if self._blanks and self._step == self._content:
            self._pieces.append(ContentPart(self._blanks))
        return self._taken()

    def _taken(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    # The steps: each parses the buffer, and returns True if another step can follow at once.

    def _begin(self) -> bool:
        """Parse the start of the answer: a think tag, a Llama call, or content."""
        text = self._buffer.text
        stripped = text.lstrip()
        if not stripped and not self._buffer.final:
            return False
        if THINK.startswith(stripped) and stripped != THINK and not self._buffer.final:
            return False
        if stripped.startswith(THINK):
            self._buffer.take(len(text) - len(stripped) + len(THINK))
            self._step = self._reason
            return True
        self._drops_blanks = False
        return self._begin_answer()

    def _begin_answer(self) -> bool:
        """Parse the start of the content, after reasoning if there was any."""
        if self._drops_blanks:
            self._buffer.skip_blanks()
            if not self._buffer.text:
                self._step = self._begin_answer
                return False
        self._step = self._content
        if self._dialect is Dialect.LLAMA and self._buffer.text.lstrip().startswith("{"):
            self._start(_json_call(self._schemas), undo="")
        return True

    def _reason(self) -> bool:
        text, found = self._until((END_THINK,))
        if text:
            self._emit_text(ReasoningPart, text)
        if found:
            self._buffer.take(len(found))
            self._blanks, self._drops_blanks = "", True
            self._step = self._begin_answer
        return bool(found)

    def _content(self) -> bool:
        if not self._markers and not self._blanks and not self._drops_blanks:
            if self._buffer.text:
                self._pieces.append(ContentPart(self._buffer.take(len(self._buffer.text))))
            self.passthrough = True
            return False
        text, found = self._until(self._markers)
        if text:
            self._emit_text(ContentPart, text)
        if not found:
            return False
        if found == "<function=":
            self._start(_tagged_call(self._schemas), undo="")
        else:
            self._undo = self._buffer.take(len(found))
            self._step = self._choose_reader
        return True

    def _choose_reader(self) -> bool:
        """Choose the reader for the call after a marker."""
        stripped = self._buffer.text.lstrip()
        if not stripped and not self._buffer.final:
            return False
        undo = self._undo
        if self._dialect in {Dialect.HERMES, Dialect.TAGS} and stripped.startswith("<"):
            self._start(_tagged_call(self._schemas), undo)
        elif stripped.startswith("[") and undo == "[TOOL_CALLS]":
            opened = self._buffer.take(len(self._buffer.text) - len(stripped) + 1)
            self._in_list = True
            self._start(_json_call(), undo + opened)
        elif undo == "[TOOL_CALLS]" and not stripped.startswith("{"):
            self._start(_named_call(), undo)
        else:
            self._start(_json_call(), undo)
        return True

    def _start(self, reader: CallReader, undo: str) -> None:
        self._reader, self._undo, self._step = reader, undo, self._call

    def _call(self) -> bool:
        if self._reader is None:
            raise RuntimeError("there is no call to read")
        state = self._reader.read(self._buffer, self._emit_call)
        if state is ParserState.MORE:
            return False
        self._step = self._after_call if state is ParserState.DONE else self._content
        if state is ParserState.NONE:
            self._in_list = False
            if self._undo:
                self._emit_text(ContentPart, self._undo)
            self._drops_blanks = False
            return self._skip_candidate()
        return True

    def _skip_candidate(self) -> bool:
        """Emit the first character of text that is no call, so that it is not tried again."""
        if self._buffer.text and not self._undo:
            self._emit_text(ContentPart, self._buffer.take(1))
        return True

    def _emit_call(self, piece: Piece) -> None:
        if isinstance(piece, ToolCall):
            self._blanks = ""  # the space between the text and the call
        self._pieces.append(piece)

    def _after_call(self) -> bool:
        """Skip closing markers, and separators between calls."""
        buffer = self._buffer
        buffer.skip_blanks()
        if not buffer.text:
            return False
        if self._in_list:
            return self._after_listed()
        if self._dialect in {Dialect.HERMES, Dialect.TAGS}:
            if buffer.text.startswith(END_CALL):
                buffer.take(len(END_CALL))
            elif END_CALL.startswith(buffer.text):
                if buffer.final:
                    buffer.take(len(buffer.text))
                return False
        if self._dialect is Dialect.LLAMA:
            if buffer.text.startswith(";"):
                buffer.take(1)
                return True
            if buffer.text.startswith("{"):
                self._start(_json_call(self._schemas), undo="")
                return True
        self._blanks, self._drops_blanks, self._step = "", True, self._content
        return True

    def _after_listed(self) -> bool:
        closing = self._buffer.take(1)
        if closing == ",":
            self._start(_json_call(), undo=",")
        else:
            self._in_list, self._drops_blanks, self._step = False, True, self._content
            if closing != "]":
                self._emit_text(ContentPart, closing)
        return True

    def _until(self, markers: tuple[str, ...]) -> tuple[str, str]:
        """Take the text before the first of `markers`; return it with the marker.

        Without a complete marker, a suffix that may be the start of one stays in the buffer.
        """
        text = self._buffer.text
        found = [(at, marker) for marker in markers if (at := text.find(marker)) >= 0]
        if found:
            at, marker = min(found)
            return self._buffer.take(at), marker
        if self._buffer.final:
            return self._buffer.take(len(text)), ""
        keep = max((_overlap(text, marker) for marker in markers), default=0)
        return self._buffer.take(len(text) - keep), ""

    def _emit_text(self, kind: type[ContentPart] | type[ReasoningPart], text: str) -> None:
        """Emit `text`, and hold back the white space at its end, which may have to be dropped."""
        text = self._blanks + text
        if self._drops_blanks:
            text = text.lstrip()
        stripped = text.rstrip()
        self._blanks = text[len(stripped) :]
        if stripped:
            self._drops_blanks = False
            self._pieces.append(kind(stripped))


# Imported late: the readers' regular expressions take milliseconds to compile, and few answers
# need them.


def _json_call(names: Collection[str] | None = None) -> CallReader:
    from workers.chat.tool_call_parser import JsonCall

    return JsonCall(names)


def _tagged_call(schemas: Mapping[str, Any]) -> CallReader:
    from workers.chat.tool_call_parser import XmlCall

    return XmlCall(schemas)


def _named_call() -> CallReader:
    from workers.chat.tool_call_parser import NamedCall

    return NamedCall()


def _overlap(text: str, marker: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `marker`."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0


class CallStart:
    """A detector of the first marker of a tool call outside of reasoning, for one answer."""

    def __init__(self, markers: Collection[str], *, thinking: bool = False) -> None:
        """Take the markers; `thinking`: the answer begins inside reasoning."""
        self._markers = markers
        self._overlap = max(map(len, (*markers, THINK, END_THINK))) - 1
        """Characters at the end of the text that may be the start of a marker."""
        self._thinking = thinking
        self._text = ""

    def see(self, text: str) -> str | None:
        """Add text of the answer; return the text after the marker once it is found, else None."""
        self._text += text
        while True:
            wanted = (END_THINK,) if self._thinking else (*self._markers, THINK)
            found = [(at, marker) for marker in wanted if (at := self._text.find(marker)) >= 0]
            if not found:
                self._text = self._text[-self._overlap :]
                return None
            at, marker = min(found)
            self._text = self._text[at + len(marker) :]
            if marker not in (THINK, END_THINK):
                return self._text
            self._thinking = marker == THINK
