"""An answer's text taken apart as it comes: reasoning, content and tool calls.

Markers never show, not even a part of one; what only looked like one comes through as content.
Pure, and indifferent to how the text is cut.

Where in a growing answer a call begins. Pure: text in, what follows the mark out.
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
    """How a model writes its calls."""

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
"""What a call begins with."""


SPELLED = (
    THINK, END_THINK, "<tool_call>", END_CALL, "<|python_tag|>", "[TOOL_CALLS]", "[CALL_ID]",
    "[ARGS]",
)  # fmt: skip
"""What may be a token of its own in a vocabulary, and must be read all the same."""


class OutputParser:
    """One answer."""

    def __init__(
        self, dialect: Dialect | None, schemas: Mapping[str, Any], *, thinking: bool = False
    ) -> None:
        """`dialect`: None if there are no tools; `schemas`: the tools' parameters by name;
        `thinking`: the prompt has opened the think tag already."""
        self._dialect = dialect
        self._markers = MARKERS[dialect]
        self._schemas = schemas
        self._buffer = Buffer()
        self._pieces: list[Piece] = []
        self._blanks = ""
        """White space whose fate depends on what follows."""
        self._drops_blanks = True
        """What comes next is not preceded by white space."""
        self._reader: CallReader | None = None
        self._undo = ""
        """What goes to the content if the reader finds no call."""
        self._in_list = False
        """Between the brackets of Mistral's list."""
        self._step: Callable[[], bool] = self._reason if thinking else self._begin
        self.idle = False
        """All that may come is content, as it is."""

    def feed(self, text: str) -> list[Piece]:
        """More text; what is certain now."""
        self._buffer.text += text
        while self._step():
            pass
        return self._taken()

    def finish(self) -> list[Piece]:
        """The text has ended; what was held back."""
        self._buffer.final = True
        while self._step():
            pass
        if self._blanks and self._step == self._say:
            self._pieces.append(ContentPart(self._blanks))
        return self._taken()

    def _taken(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    # The steps: each looks at the buffer, and says whether there is more to do at once.

    def _begin(self) -> bool:
        """At the very start: a think tag, a call of Llama's, or content with its white space."""
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
        """Where reasoning is over or there was none."""
        if self._drops_blanks:
            self._buffer.skip_blanks()
            if not self._buffer.text:
                self._step = self._begin_answer
                return False
        self._step = self._say
        if self._dialect is Dialect.LLAMA and self._buffer.text.lstrip().startswith("{"):
            self._start(_json_call(self._schemas), undo="")
        return True

    def _reason(self) -> bool:
        text, found = self._until((END_THINK,))
        if text:
            self._tell(ReasoningPart, text)
        if found:
            self._buffer.take(len(found))
            self._blanks, self._drops_blanks = "", True
            self._step = self._begin_answer
        return bool(found)

    def _say(self) -> bool:
        if not self._markers and not self._blanks and not self._drops_blanks:
            if self._buffer.text:
                self._pieces.append(ContentPart(self._buffer.take(len(self._buffer.text))))
            self.idle = True
            return False
        text, found = self._until(self._markers)
        if text:
            self._tell(ContentPart, text)
        if not found:
            return False
        if found == "<function=":
            self._start(_tagged_call(self._schemas), undo="")
        else:
            self._undo = self._buffer.take(len(found))
            self._step = self._choose
        return True

    def _choose(self) -> bool:
        """After a marker: what kind of call it is."""
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
        self._step = self._after_call if state is ParserState.DONE else self._say
        if state is ParserState.NONE:
            self._in_list = False
            if self._undo:
                self._tell(ContentPart, self._undo)
            self._drops_blanks = False
            return self._pass_first()
        return True

    def _pass_first(self) -> bool:
        """What turned out to be no call is not looked at as the beginning of one again."""
        if self._buffer.text and not self._undo:
            self._tell(ContentPart, self._buffer.take(1))
        return True

    def _emit_call(self, piece: Piece) -> None:
        if isinstance(piece, ToolCall):
            self._blanks = ""  # that was between the text and the call
        self._pieces.append(piece)

    def _after_call(self) -> bool:
        """Closing marks, and what comes between calls."""
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
        self._blanks, self._drops_blanks, self._step = "", True, self._say
        return True

    def _after_listed(self) -> bool:
        mark = self._buffer.take(1)
        if mark == ",":
            self._start(_json_call(), undo=",")
        else:
            self._in_list, self._drops_blanks, self._step = False, True, self._say
            if mark != "]":
                self._tell(ContentPart, mark)
        return True

    def _until(self, markers: tuple[str, ...]) -> tuple[str, str]:
        """Takes the text before the first of `markers`, or before what may be the beginning of
        one; and the marker, if it is there."""
        text = self._buffer.text
        found = [(at, marker) for marker in markers if (at := text.find(marker)) >= 0]
        if found:
            at, marker = min(found)
            return self._buffer.take(at), marker
        if self._buffer.final:
            return self._buffer.take(len(text)), ""
        keep = max((_overlap(text, marker) for marker in markers), default=0)
        return self._buffer.take(len(text) - keep), ""

    def _tell(self, kind: type[ContentPart] | type[ReasoningPart], text: str) -> None:
        """`text` but the white space at its end, which may not be wanted."""
        text = self._blanks + text
        if self._drops_blanks:
            text = text.lstrip()
        told = text.rstrip()
        self._blanks = text[len(told) :]
        if told:
            self._drops_blanks = False
            self._pieces.append(kind(told))


# Their expressions take milliseconds to compile, and few answers need them.


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
    """Length of the longest end of `text` that `marker` begins with."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0


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
