"""Streaming readers of tool calls: JSON, Qwen3-coder's tags, and Mistral's named calls.

A call is emitted as soon as its name is certain, and its arguments as they arrive. Until then the
text may turn out to be no call; afterwards invalid text is passed on unchanged, because the client
has already read the start of the call. Readers are pure, and do not depend on how the text is cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from workers.chat.answer_parts import ArgumentsPart, Buffer, Emit, ParserState, ToolCall


class JsonScan:
    """A scanner for the end of a JSON value in braces or brackets."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        self._escaped = False

    def end(self, text: str) -> int | None:
        """Scan the next `text`; return the length of its part of the value.

        None: the value does not end in `text`.
        """
        for at, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return at + 1
        return None


_HEAD = re.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)+")\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_KEY = re.compile(r'\s*\{\s*"([a-z_]*)')
_KEYS = ("name", "type", "arguments", "parameters", "id", "function")


class JsonCall:
    """A reader of `{"name": …, "arguments": {…}}`, in any order; `parameters` is a synonym."""

    def __init__(self, names: Collection[str] | None = None) -> None:
        """Take the names of tools that can be called; None: any."""
        self._names = names
        self._whole = JsonScan()
        self._scanned = 0
        self._arguments: JsonScan | None = None
        self._rest: JsonScan | None = None

    def read(self, buffer: Buffer, emit: Emit) -> ParserState:
        """Remove parsed text from `buffer` and emit its parts."""
        if self._rest is None and self._arguments is None:
            state = self._read_head(buffer, emit)
            if state is not ParserState.MORE or self._arguments is None:
                return state
        if self._arguments is not None:
            end = self._arguments.end(buffer.text)
            text = buffer.take(len(buffer.text) if end is None else end)
            if text:
                emit(ArgumentsPart(text))
            if end is None:
                return ParserState.DONE if buffer.final else ParserState.MORE
            self._arguments, self._rest = None, JsonScan(depth=1)
        if self._rest is None:
            raise RuntimeError("the call has no arguments yet")
        end = self._rest.end(buffer.text)
        buffer.take(len(buffer.text) if end is None else end)
        return ParserState.DONE if end is not None or buffer.final else ParserState.MORE

    def _read_head(self, buffer: Buffer, emit: Emit) -> ParserState:
        head = _HEAD.match(buffer.text)
        if head is not None:
            name = _loaded(head[1])
            if not self._is_known(name):
                return ParserState.NONE
            emit(ToolCall(str(name)))
            buffer.take(head.end())
            self._arguments = JsonScan()
            return ParserState.MORE
        if not self._may_become_one(buffer.text):
            return ParserState.NONE
        end = self._whole.end(buffer.text[self._scanned :])
        if end is None:
            self._scanned = len(buffer.text)
            return ParserState.NONE if buffer.final else ParserState.MORE
        end += self._scanned
        return self._read_whole(buffer, end, emit)

    def _read_whole(self, buffer: Buffer, end: int, emit: Emit) -> ParserState:
        """Read a complete value whose members are in another order."""
        value = _loaded(buffer.text[:end])
        if not isinstance(value, dict):
            return ParserState.NONE
        inner = value.get("function", value)
        if not isinstance(inner, dict) or not self._is_known(inner.get("name")):
            return ParserState.NONE
        given = inner.get("arguments", inner.get("parameters", {}))
        if isinstance(given, str):
            given = _loaded(given)
        if not isinstance(given, dict):
            return ParserState.NONE
        buffer.take(end)
        emit(ToolCall(inner["name"]))
        emit(ArgumentsPart(json.dumps(given, ensure_ascii=False)))
        return ParserState.DONE

    def _is_known(self, name: object) -> bool:
        known = isinstance(name, str) and name != ""
        return known and (self._names is None or name in self._names)

    @staticmethod
    def _may_become_one(text: str) -> bool:
        text = text.lstrip()
        if text and not text.startswith("{"):
            return False
        key = _KEY.match(text)
        if key is None:
            return text[1:].strip() == ""
        whole = text[key.end() :] != ""
        return key[1] in _KEYS if whole else any(word.startswith(key[1]) for word in _KEYS)


class XmlCall:
    """A reader of Qwen3-coder's `<function=name> <parameter=key> value </parameter> … </function>`.

    A value is JSON unless the tool's schema declares it a string.
    """

    _NAME = re.compile(r"<function=([^<>\s]+)>")
    _KEY = re.compile(r"<parameter=([^<>\n]+)>")
    _END_KEY, _END = "</parameter>", "</function>"

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        """Take the parameter schemas by the tool's name."""
        self._schemas = schemas
        self._name = ""
        self._count = 0

    def read(self, buffer: Buffer, emit: Emit) -> ParserState:
        """Remove parsed text from `buffer` and emit its parts."""
        if not self._name:
            blanks = len(buffer.text) - len(buffer.text.lstrip())
            head = self._NAME.match(buffer.text, blanks)
            if head is None:
                possible = re.fullmatch(r"<function=[^<>\s]*", buffer.text[blanks:]) or (
                    "<function=".startswith(buffer.text[blanks:])
                )
                return ParserState.MORE if possible and not buffer.final else ParserState.NONE
            self._name = head[1]
            buffer.take(head.end())
            emit(ToolCall(self._name))
            emit(ArgumentsPart("{"))
        while True:
            buffer.skip_blanks()
            key = self._KEY.match(buffer.text)
            end = -1 if key is None else buffer.text.find(self._END_KEY, key.end())
            if key is not None and end >= 0:
                value = buffer.text[key.end() : end]
                buffer.take(end + len(self._END_KEY))
                emit(ArgumentsPart(self._member(key[1], value)))
                continue
            if buffer.text.startswith(self._END):
                buffer.take(len(self._END))
                emit(ArgumentsPart("}"))
                return ParserState.DONE
            if key is not None or self._may_go_on(buffer.text):
                if buffer.final:
                    buffer.take(len(buffer.text))
                return ParserState.DONE if buffer.final else ParserState.MORE
            emit(ArgumentsPart("}"))  # other text: the call is complete
            return ParserState.DONE

    def _may_go_on(self, text: str) -> bool:
        """Return True if `text` may become the next parameter or the end."""
        begun = text.startswith("<parameter=") and not set("<>\n") & set(text[11:])
        return begun or "<parameter=".startswith(text) or self._END.startswith(text)

    def _member(self, key: str, text: str) -> str:
        text = text.removeprefix("\n").removesuffix("\n")
        comma = ", " if self._count else ""
        self._count += 1
        schema = self._schemas.get(self._name)
        properties = schema.get("properties", {}) if isinstance(schema, Mapping) else {}
        wanted = properties.get(key) if isinstance(properties, Mapping) else None
        kind = wanted.get("type") if isinstance(wanted, Mapping) else None
        value = text if kind == "string" else _loaded(text, otherwise=text)
        return (
            f"{comma}{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
        )


class NamedCall:
    """A reader of `name[ARGS]{…}`, which Mistral's later models write after `[TOOL_CALLS]`."""

    _HEAD = re.compile(r"\s*([A-Za-z0-9_.-]+)(?:\[CALL_ID\][A-Za-z0-9]*)?(?:\[ARGS\])?\s*(?=\{)")
    _BEGUN = re.compile(
        r"\s*(?:[A-Za-z0-9_.-]+(?:\[C?A?L?L?_?I?D?\]?[A-Za-z0-9]*)?(?:\[A?R?G?S?\]?)?\s*)?"
    )

    def __init__(self) -> None:
        self._arguments: JsonScan | None = None

    def read(self, buffer: Buffer, emit: Emit) -> ParserState:
        """Remove parsed text from `buffer` and emit its parts."""
        if self._arguments is None:
            head = self._HEAD.match(buffer.text)
            if head is None:
                possible = self._BEGUN.fullmatch(buffer.text) and not buffer.final
                return ParserState.MORE if possible else ParserState.NONE
            emit(ToolCall(head[1]))
            buffer.take(head.end())
            self._arguments = JsonScan()
        end = self._arguments.end(buffer.text)
        text = buffer.take(len(buffer.text) if end is None else end)
        if text:
            emit(ArgumentsPart(text))
        return ParserState.DONE if end is not None or buffer.final else ParserState.MORE


def _loaded(text: str, otherwise: object = None) -> Any:
    """Decode `text` as JSON; return `otherwise` if it is invalid."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return otherwise
