"""Edits of custom_models.yaml, or any YAML text, in place: one value changes, all other lines stay
the same. Pure.

The text is changed at the marks of PyYAML's nodes. The result is parsed again and compared with the
intended values, so an unsupported layout is rejected and never damaged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from swapd.config.custom_models import FILE
from swapd.config.errors import ConfigError
from swapd.config.yaml_dump import dump_flow
from swapd.config.yaml_nodes import parse_tree, typed

_END = re.compile(r"\r\n|\n|\r|\Z")
_NULL = "tag:yaml.org,2002:null"
_STEP = 2


class EditError(Exception):
    """An edit that cannot be made; the message is a sentence."""


def set_value(text: str, model: str, key: str, value: object) -> str:
    """Return the text with a model's key set; a missing section is created.

    `key` may name a key within a section: `adapters.alice`. `value` consists of YAML types.
    Raises EditError, and ConfigError for a text that is not YAML.
    """
    return put(text, _path(model, key), value)


def put(text: str, path: Sequence[str], value: object, file: str = FILE) -> str:
    """Return the text with the value at a path of keys. Raises as `set_value` does."""
    meant = _values(text, file)
    _put(meant, path, value, file)
    changed = _Editor(text, file).set(path, value)
    return _proved(changed, meant, path, file)


def unset(text: str, model: str, key: str) -> str:
    """Return the text without a model's key, and without sections that become empty.

    Raises EditError where there is no such key, and ConfigError for a text that is not YAML.
    """
    return take(text, _path(model, key), f"{key} for {model}")


def take(text: str, path: Sequence[str], called: str, file: str = FILE) -> str:
    """Return the text without the value at a path; `called` is its name in messages.

    Raises as `unset` does.
    """
    meant = _values(text, file)
    if not _take(meant, path):
        raise EditError(f"{file} says nothing of {called}")
    changed = _Editor(text, file).unset(path)
    return _proved(changed, meant, path, file)


def _path(model: str, key: str) -> tuple[str, ...]:
    return ("models", model, *key.split(".", 1))


def _values(text: str, file: str) -> dict[str, Any]:
    tree, _ = parse_tree(text, file)
    values = typed(tree)
    assert isinstance(values, dict)
    return values


def _put(values: dict[str, Any], path: Sequence[str], value: object, file: str) -> None:
    for step in path[:-1]:
        inner = values.get(step)
        if inner is None:
            inner = values[step] = {}
        if not isinstance(inner, dict):
            raise EditError(f"{step} in {file} is no section")
        values = inner
    values[path[-1]] = value


def _take(values: dict[str, Any], path: Sequence[str]) -> bool:
    """Remove the value and sections that become empty, except `models`; True if it existed."""
    inner: Any = values
    for step in path[:-1]:
        inner = inner.get(step) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or path[-1] not in inner:
        return False
    del inner[path[-1]]
    if not inner and len(path) > 2:
        _take(values, path[:-1])
    return True


def _proved(text: str, meant: dict[str, Any], path: Sequence[str], file: str) -> str:
    try:
        found: object = _values(text, file)
    except ConfigError as error:
        raise _by_hand(path, file) from error
    if found != meant:
        raise _by_hand(path, file)
    return text


def _by_hand(path: Sequence[str], file: str) -> EditError:
    return EditError(f"{'.'.join(path)} is laid out in a way that only you can edit: open {file}")


@dataclass(frozen=True, slots=True)
class _Pair:
    """A key and its value in the text."""

    key: yaml.ScalarNode
    value: yaml.Node
    section: yaml.MappingNode

    @property
    def start(self) -> int:
        return int(self.key.start_mark.index)

    @property
    def empty(self) -> bool:
        """True if a section can be written in place of the value."""
        if isinstance(self.value, yaml.ScalarNode):
            return bool(self.value.tag == _NULL)
        return isinstance(self.value, yaml.MappingNode) and not self.value.value


class _Editor:
    """Editor of a text by the marks of its nodes."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        # The marks of this loader count characters; those of libyaml may count bytes.
        try:
            self._top = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            # libyaml, used for the earlier parse, accepts some texts that this loader does not.
            raise _by_hand(("it",), file) from error
        end = _END.search(text)
        self._newline = (end[0] if end is not None else "") or "\n"

    def set(self, path: Sequence[str], value: object) -> str:
        if not isinstance(self._top, yaml.MappingNode):
            start = len(self._text)
            return self._spliced(start, start, self._block(path, value, 0))
        pairs = self._pairs(path)
        rest = path[len(pairs) :]
        if not rest:
            return self._replace(pairs[-1], dump_flow(value))
        section = pairs[-1].value if pairs else self._top
        flow = any(pair.section.flow_style for pair in pairs)
        if pairs and pairs[-1].empty:
            if flow:
                return self._replace(pairs[-1], _nested_flow(rest, value))
            return self._fill(pairs[-1], rest, value)
        if not isinstance(section, yaml.MappingNode):
            raise _by_hand(path, self._file)
        return self._add(section, rest, value)

    def unset(self, path: Sequence[str]) -> str:
        pairs = self._pairs(path)
        if len(pairs) < len(path):
            # The key exists, but is merged in from another section.
            raise _by_hand(path, self._file)
        while len(pairs) > 2 and len(pairs[-1].section.value) == 1:
            pairs.pop()
        if len(pairs[-1].section.value) == 1:
            return self._remove_last(*pairs)
        return self._remove(pairs[-1])

    def _pairs(self, path: Sequence[str]) -> list[_Pair]:
        """Return the existing pairs on the path, one a step."""
        pairs: list[_Pair] = []
        node = self._top
        for step in path:
            if not isinstance(node, yaml.MappingNode):
                break
            found = [_Pair(k, v, node) for k, v in node.value if k.value == step]
            if not found:
                break
            pair = found[0]
            if pair.value.start_mark.index < pair.key.end_mark.index:
                # An alias: its value is elsewhere in the text, and shared.
                raise _by_hand(path, self._file)
            pairs.append(pair)
            node = pair.value
        return pairs

    def _replace(self, pair: _Pair, new: str) -> str:
        """Replace the pair's value, on the line of its key; a comment there stays."""
        colon, start = self._colon(pair), int(pair.value.start_mark.index)
        end = self._end(pair.value)
        line_end = self._line_end(colon)
        if start <= line_end:
            block = isinstance(pair.value, yaml.ScalarNode) and pair.value.style in ("|", ">")
            if not block:
                space = "" if self._text[colon:start].endswith((" ", "\t")) else " "
                return self._text[:start] + space + new + self._text[end:]
            comment = re.search(r"\s#", self._text[start:line_end])
            kept = self._text[start + comment.start() : line_end] if comment else ""
            return f"{self._text[:colon]} {new}{kept}{self._text[max(end, line_end) :]}"
        return f"{self._text[:colon]} {new}{self._text[colon:line_end]}{self._text[end:]}"

    def _fill(self, pair: _Pair, rest: Sequence[str], value: object) -> str:
        """Write a section below a key with an empty value or `{}`."""
        start, end = int(pair.value.start_mark.index), self._end(pair.value)
        before = self._text[:start].rstrip(" \t") if end > start else self._text[:start]
        below = self._line_end(end)
        lines = self._block(rest, value, pair.key.start_mark.column + _STEP)
        emptied = before + self._text[end:below]
        return _line_after(emptied + self._text[below:], len(emptied), lines, self._newline)

    def _add(self, section: yaml.MappingNode, rest: Sequence[str], value: object) -> str:
        last = self._end(section.value[-1][1]) if section.value else 0
        if section.flow_style:
            if not section.value:
                last = int(section.start_mark.index) + 1
            inner = _nested_flow(rest, value)[1:-1]
            return self._spliced(last, last, f", {inner}" if section.value else inner)
        lines = self._block(rest, value, self._indent(section.value[0][0]))
        return _line_after(self._text, self._line_end(last), lines, self._newline)

    def _remove(self, pair: _Pair) -> str:
        """Remove one of several pairs of a section."""
        pairs = pair.section.value
        at = next(i for i, (key, _) in enumerate(pairs) if key is pair.key)
        end = self._end(pair.value)
        if pair.section.flow_style:
            if at + 1 < len(pairs):
                return self._spliced(pair.start, int(pairs[at + 1][0].start_mark.index), "")
            return self._spliced(self._end(pairs[at - 1][1]), end, "")
        first = self._line_start(pair.start)
        after = _END.search(self._text, end)
        return self._spliced(first, after.end() if after is not None else end, "")

    def _remove_last(self, models: _Pair, pair: _Pair) -> str:
        """Remove the only model of `models`; comments around it stay."""
        if pair.section.flow_style:
            return self._replace(models, "{}")
        first, end = self._line_start(pair.start), self._end(pair.value)
        after = _END.search(self._text, end)
        colon = self._colon(models)
        rest = self._text[after.end() if after is not None else end :]
        return f"{self._text[:colon]} {{}}{self._text[colon:first]}{rest}"

    def _spliced(self, start: int, end: int, new: str) -> str:
        if start == end == len(self._text) and self._text and not self._text.endswith(("\n", "\r")):
            new = self._newline + new
        return self._text[:start] + new + self._text[end:]

    def _block(self, path: Sequence[str], value: object, indent: int) -> str:
        """Return lines of nested keys with a value at the end."""
        lines = [
            " " * (indent + _STEP * depth) + f"{dump_flow(step)}:"
            for depth, step in enumerate(path)
        ]
        lines[-1] += f" {dump_flow(value)}"
        return "".join(line + self._newline for line in lines)

    def _end(self, node: yaml.Node) -> int:
        """Return the end of the node's own text; a block's mark is after the comments behind it."""
        if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
            last = node.value[-1]
            return self._end(last[1] if isinstance(last, tuple) else last)
        start, end = int(node.start_mark.index), int(node.end_mark.index)
        if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
            return start + len(self._text[start:end].rstrip())
        return end

    def _indent(self, key: yaml.Node) -> int:
        """Return the column of the section's keys, including a `?` before one."""
        at = int(key.start_mark.index)
        before = self._text[self._line_start(at) : at]
        return before.index("?") if before.strip() == "?" else int(key.start_mark.column)

    def _colon(self, pair: _Pair) -> int:
        """Return the position after the colon of a pair."""
        end = int(pair.key.end_mark.index)
        # After `? key` the colon is on a line of its own.
        colon = re.compile(r"(?:[ \t]*(?:#[^\r\n]*)?[\r\n]+)*[ \t]*:").match(self._text, end)
        if colon is None:
            raise _by_hand((pair.key.value,), self._file)
        return colon.end()

    def _line_end(self, position: int) -> int:
        end = _END.search(self._text, position)
        return end.start() if end is not None else len(self._text)

    def _line_start(self, position: int) -> int:
        return max(self._text.rfind("\n", 0, position), self._text.rfind("\r", 0, position)) + 1


def _line_after(text: str, line_end: int, lines: str, newline: str) -> str:
    """Insert whole lines after the line that ends at `line_end`."""
    end = _END.match(text, line_end)
    behind = end.end() if end is not None else line_end
    before = text[:behind]
    if behind == line_end:
        # The last line had no line end; the text stays without one.
        before, lines = before + newline, lines.removesuffix(newline)
    return before + lines + text[behind:]


def _nested_flow(path: Sequence[str], value: object) -> str:
    for step in reversed(path):
        value = {step: value}
    return dump_flow(value)
