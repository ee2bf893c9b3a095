"""Decode a tree by a schema: every key is checked and every problem is reported."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar, get_args

import msgspec

from swapd.config.errors import Path, Problem, did_you_mean, dotted
from swapd.config.yaml_nodes import (
    MappingEntry,
    MappingNode,
    Node,
    ScalarNode,
    SequenceNode,
    line_of,
    reread,
    textual,
    typed,
)

_S = TypeVar("_S", bound=msgspec.Struct)
_ENV = re.compile(r"\$\{env\.([^}]*)\}")


@dataclass
class Diagnostics:
    """Problems and warnings of one file, collected while it is read."""

    file: str
    tree: MappingNode
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def problem(self, path: Path, message: str) -> None:
        """Report that the value at `path` cannot be used."""
        self.problems.append(self._at(path, message))

    def warn(self, path: Path, message: str) -> None:
        """Report that the value at `path` has another effect than its author may expect."""
        self.warnings.append(self._at(path, message))

    def _at(self, path: Path, message: str) -> Problem:
        return Problem(self.file, line_of(self.tree, path), dotted(path), message)


@dataclass(frozen=True, slots=True)
class FieldShape:
    """Properties of a schema field that the decoder uses."""

    attribute: str
    type: Any
    wants: str
    inert: str
    macros: bool
    secret: bool
    nested: type[msgspec.Struct] | None
    also: str = ""
    """Another spelling of its name."""
    formerly: str = ""
    """Its name in an earlier release, accepted with a warning."""


@functools.cache
def field_shapes(struct: type[msgspec.Struct]) -> MappingType[str, FieldShape]:
    """Return the fields of a schema by their names in the file.

    Cached: for 500 models the inspection would take a third of a second.
    """
    found = {}
    for info in msgspec.structs.fields(struct):
        description, extra = "", {}
        for meta in get_args(info.type)[1:]:
            if isinstance(meta, msgspec.Meta):
                description = meta.description or description
                extra.update(meta.extra or {})
        nested = info.type if isinstance(info.type, type) else None
        found[info.encode_name] = FieldShape(
            attribute=info.name,
            type=info.type,
            wants=description,
            inert=extra.get("inert", ""),
            macros=extra.get("macros", False),
            secret=extra.get("secret", False),
            nested=nested if nested and issubclass(nested, msgspec.Struct) else None,
            also=extra.get("also", ""),
            formerly=extra.get("formerly", ""),
        )
    return MappingProxyType(found)


def find_shape(struct: type[msgspec.Struct], key: str) -> tuple[str, FieldShape] | None:
    """Return the current name and the shape of a key, or None for an unknown one.

    Other and former spellings of a name are found too.
    """
    shapes = field_shapes(struct)
    if key in shapes:
        return key, shapes[key]
    for name, shape in shapes.items():
        if key and key in (shape.also, shape.formerly):
            return name, shape
    return None


def use_current_names(struct: type[msgspec.Struct], section: MappingNode) -> MappingNode:
    """Return the section with each former key replaced by its current name, at any depth."""
    entries: dict[str, MappingEntry] = {}
    for key, entry in section.entries.items():
        found = find_shape(struct, key)
        if found is None:
            entries[key] = entry
            continue
        name, shape = found
        node = entry.node
        if shape.nested is not None and isinstance(node, MappingNode):
            node = use_current_names(shape.nested, node)
        entries[name if key == shape.formerly else key] = MappingEntry(entry.line, node)
    return MappingNode(section.line, MappingProxyType(entries))


def decode(
    struct: type[_S],
    section: MappingNode,
    path: Path,
    report: Diagnostics,
    env: MappingType[str, str],
    beside: frozenset[str] = frozenset(),
) -> _S:
    """Decode the section as `struct`; unusable values are reported and keep their default.

    A key without a value means its default. Keys in `beside` are left to the caller.
    """
    known = field_shapes(struct)
    values: dict[str, Any] = {}
    for key, entry in section.entries.items():
        here = (*path, key)
        if key in beside:
            continue
        found = find_shape(struct, key)
        if found is None:
            message = f"unknown key{did_you_mean(key, {*known, *beside})}"
            report.problem(here, message)
            continue
        name, shape = found
        if key != name and name in section.entries:
            report.problem(here, f"means the same as {name}; give one of them")
            continue
        if key == shape.formerly:
            message = f"was renamed to {name}; the old name is accepted in this release only"
            report.warn(here, message)
        if isinstance(entry.node, ScalarNode) and entry.node.value is None:
            continue
        if shape.inert:
            report.warn(here, f"has no effect yet: {shape.inert}")
        elif shape.nested is not None:
            if isinstance(entry.node, MappingNode):
                values[shape.attribute] = decode(shape.nested, entry.node, here, report, env)
            else:
                report.problem(here, f"must be a section, not {_shown(entry.node)}")
        else:
            _leaf(entry.node, shape, here, report, env, values)
    return struct(**values)


def expand_env(node: Node, path: Path, report: Diagnostics, env: MappingType[str, str]) -> Node:
    """Return the node with every `${env.NAME}` replaced; an unset variable is a problem."""
    if isinstance(node, SequenceNode):
        items = (expand_env(n, (*path, i), report, env) for i, n in enumerate(node.items))
        return SequenceNode(node.line, tuple(items))
    if isinstance(node, MappingNode):
        entries = {
            key: MappingEntry(entry.line, expand_env(entry.node, (*path, key), report, env))
            for key, entry in node.entries.items()
        }
        return MappingNode(node.line, MappingProxyType(entries))
    if "${env." not in node.text:
        return node

    def value(match: re.Match[str]) -> str:
        if match[1] not in env:
            report.problem(path, env_problem(match[1], env))
        return env.get(match[1], "")

    return reread(node, _ENV.sub(value, node.text))


def env_problem(name: str, env: MappingType[str, str]) -> str:
    """Return the message about a variable that is not set."""
    return f"the environment has no {name}{did_you_mean(name, env)}"


def _leaf(
    node: Node,
    shape: FieldShape,
    path: Path,
    report: Diagnostics,
    env: MappingType[str, str],
    values: dict[str, Any],
) -> None:
    if not shape.macros:
        before = len(report.problems)
        node = expand_env(node, path, report, env)
        if len(report.problems) > before:
            return
    try:
        values[shape.attribute] = _convert(node, shape.type)
    except msgspec.ValidationError:
        at, wrong = _wrong_item(node, shape.type)
        # The items of every list in the schema are text.
        wants = "text" if at else shape.wants
        shown = "" if shape.secret else f", not {_shown(wrong)}"
        report.problem((*path, *at), f"must be {wants}{shown}")


def _wrong_item(node: Node, kind: Any) -> tuple[tuple[int, ...], Node]:
    """Return position and node of the first item that does not fit, or the whole node.

    Found by converting lists of a single item, so that no library's message has to be parsed.
    """
    if isinstance(node, SequenceNode) and _fits(SequenceNode(node.line, ()), kind):
        for i, item in enumerate(node.items):
            if not _fits(SequenceNode(node.line, (item,)), kind):
                return (i,), item
    return (), node


def _fits(node: Node, kind: Any) -> bool:
    try:
        _convert(node, kind)
    except msgspec.ValidationError:
        return False
    return True


def _convert(node: Node, kind: Any) -> Any:
    """Convert by the YAML types of scalars, else by their text, so that `name: 3` is a name."""
    try:
        return msgspec.convert(typed(node), kind)
    except msgspec.ValidationError:
        return msgspec.convert(textual(node), kind)


def _shown(node: Node) -> str:
    if isinstance(node, MappingNode):
        return "a section"
    if isinstance(node, SequenceNode):
        return "a list"
    if node.value is None:
        return "nothing"
    text = node.text if len(node.text) <= 40 else node.text[:37] + "..."
    return text.replace("\n", " ") if node.plain else repr(text)
