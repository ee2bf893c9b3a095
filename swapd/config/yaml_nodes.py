"""Tree of a YAML text, with line numbers. Pure.

PyYAML finds the structure; this module adds the line of every key, rejects duplicate keys, resolves
merge keys (`<<`), and limits depth and size so that no text can crash the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import yaml
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from swapd.config.errors import ConfigError, Path, Problem, dotted

_Loader: type[yaml.SafeLoader] | type[yaml.CSafeLoader] = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)

MAX_DEPTH = 64
"""Levels of nesting; libyaml's composer recurses on the C stack and crashes on deep texts."""
MAX_WEIGHT = 200_000
"""Values in a file with every YAML alias expanded; rejects texts that grow when expanded."""

_TAG = "tag:yaml.org,2002:"
_TOO_DEEP = f"sections are nested more than {MAX_DEPTH} deep"


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """A single value: its text and its value in YAML."""

    line: int
    text: str
    value: bool | int | float | str | None
    plain: bool
    """True if written without quotes, so that its text may mean a number or a boolean."""


@dataclass(frozen=True, slots=True)
class SequenceNode:
    """A list."""

    line: int
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class MappingEntry:
    """A key's line and its value."""

    line: int
    node: Node


@dataclass(frozen=True, slots=True)
class MappingNode:
    """A section: keys, as text, in the order of the file."""

    line: int
    entries: MappingType[str, MappingEntry]


Node: TypeAlias = ScalarNode | SequenceNode | MappingNode


def parse_tree(text: str, file: str) -> tuple[MappingNode, list[Problem]]:
    """Parse one YAML document whose top is a section; return it with problems of single values.

    An empty text is an empty section. Raises ConfigError when there is no usable tree.
    """
    _check_depth(text, file)
    try:
        top = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeError) as error:
        raise ConfigError([_syntax_problem(error, text, file)]) from error
    if top is None:
        return MappingNode(1, MappingProxyType({})), []
    builder = _Builder(file)
    tree = builder.build(top, ())
    if isinstance(tree, ScalarNode) and tree.value is None:
        tree = MappingNode(1, MappingProxyType({}))
    if not isinstance(tree, MappingNode):
        raise ConfigError([Problem(file, tree.line, "", "must be a section of keys and values")])
    return tree, builder.problems


def node_at(tree: MappingNode, path: Path) -> Node | None:
    """Return the node at `path`, or None."""
    steps = _walk(tree, path)
    return steps[-1][1] if len(steps) == len(path) + 1 else None


def line_of(tree: MappingNode, path: Path) -> int:
    """Return the line of the value at `path`, or of its nearest existing parent."""
    return _walk(tree, path)[-1][0]


def _walk(tree: MappingNode, path: Path) -> list[tuple[int, Node]]:
    """Return line and node of every existing step of the path, the top first."""
    steps: list[tuple[int, Node]] = [(tree.line, tree)]
    for step in path:
        node = steps[-1][1]
        if isinstance(node, MappingNode) and isinstance(step, str) and step in node.entries:
            steps.append((node.entries[step].line, node.entries[step].node))
        elif isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.items):
            steps.append((node.items[step].line, node.items[step]))
        else:
            break
    return steps


def typed(node: Node) -> object:
    """Return the node as Python values, scalars by their YAML type."""
    if isinstance(node, ScalarNode):
        return node.value
    if isinstance(node, SequenceNode):
        return [typed(item) for item in node.items]
    return {key: typed(entry.node) for key, entry in node.entries.items()}


def textual(node: Node) -> object:
    """Return the node as Python values, every scalar as its text in the file."""
    if isinstance(node, ScalarNode):
        return node.text
    if isinstance(node, SequenceNode):
        return [textual(item) for item in node.items]
    return {key: textual(entry.node) for key, entry in node.entries.items()}


def reread(scalar: ScalarNode, text: str) -> ScalarNode:
    """Return the scalar with another text, and the value of that text in its place."""
    if not scalar.plain:
        return ScalarNode(scalar.line, text, text, plain=False)
    resolver: Any = Resolver()
    tag = resolver.resolve(yaml.ScalarNode, text, (True, False))
    try:
        value = _construct(yaml.ScalarNode(tag, text))
    except ValueError:
        value = text
    return ScalarNode(scalar.line, text, value, plain=True)


def _check_depth(text: str, file: str) -> None:
    """Refuse deep nesting before the recursive composer sees it; the event parser is a loop."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark is not None else 0
                raise ConfigError([Problem(file, line, "", _TOO_DEEP)])
    except (yaml.YAMLError, UnicodeError) as error:
        raise ConfigError([_syntax_problem(error, text, file)]) from error


def _syntax_problem(error: yaml.YAMLError | UnicodeError, text: str, file: str) -> Problem:
    """Describe a parser's error in words of this program; the library's text is an addition."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return Problem(file, 0, "", f"holds a character that YAML does not allow ({error})")
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark is not None else 0
    lines = text.splitlines()
    written = lines[line - 1] if 0 < line <= len(lines) else ""
    if "\t" in written[: len(written) - len(written.lstrip())]:
        return Problem(file, line, "", "a tab is used where YAML requires spaces")
    # The scanner reads ahead of the events and has a limit of its own in newer versions.
    before = text[: mark.index] if mark is not None else ""
    if sum(map(before.count, "[{")) - sum(map(before.count, "]}")) > MAX_DEPTH:
        return Problem(file, line, "", _TOO_DEEP)
    column = f" near column {mark.column + 1}" if mark is not None else ""
    detail = " ".join(part for part in (error.context, error.problem) if part).replace("\n", " ")
    addition = f" (parser: {detail})" if detail else ""
    return Problem(file, line, "", f"is not valid YAML{column}{addition}")


def _construct(node: yaml.ScalarNode) -> bool | int | float | str | None:
    """Return the scalar's value; ValueError when its text does not fit its tag."""
    constructor = SafeConstructor()
    kind = node.tag.removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return _truth(node.value)
    if kind == "int":
        return int(_number(constructor.construct_yaml_int, node))
    if kind == "float":
        real = float(_number(constructor.construct_yaml_float, node))
        if not math.isfinite(real):
            raise ValueError("must be a finite number")
        return real
    if kind in {"str", "timestamp", "value", "merge"}:
        return str(node.value)
    raise ValueError(f"the tag {node.tag} is not supported")


def _number(construct: Callable[[yaml.ScalarNode], Any], node: yaml.ScalarNode) -> Any:
    """Construct a number; a failure raises ValueError with a sentence of this program."""
    try:
        return construct(node)
    except (ValueError, IndexError) as error:
        text = node.value if len(node.value) <= 40 else node.value[:37] + "..."
        raise ValueError(f"{text} cannot be read as a number") from error


def _truth(text: str) -> bool:
    if text.lower() not in SafeConstructor.bool_values:
        raise ValueError(f"{text} is neither true nor false")
    return bool(SafeConstructor.bool_values[text.lower()])


class _Builder:
    """Converter of PyYAML's nodes, each once; collects problems."""

    def __init__(self, file: str) -> None:
        self.problems: list[Problem] = []
        self._file = file
        self._built: dict[int, tuple[Node, int]] = {}
        self._open: set[int] = set()

    def build(self, node: yaml.Node, path: Path) -> Node:
        return self._weighed(node, path)[0]

    def _problem(self, node: yaml.Node, path: Path, message: str) -> None:
        line = node.start_mark.line + 1
        self.problems.append(Problem(self._file, line, dotted(path), message))

    def _weighed(self, node: yaml.Node, path: Path) -> tuple[Node, int]:
        """Return the node and its number of expanded values; shared nodes are built once."""
        known = self._built.get(id(node))
        if known is not None:
            return known
        line = node.start_mark.line + 1
        if id(node) in self._open:
            self._problem(node, path, "a YAML alias refers to a section that contains it")
            return ScalarNode(line, "", None, plain=True), 1
        self._open.add(id(node))
        made: tuple[Node, int]
        if isinstance(node, yaml.MappingNode):
            made = self._mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            pairs = [self._weighed(child, (*path, i)) for i, child in enumerate(node.value)]
            made = SequenceNode(line, tuple(n for n, _ in pairs)), 1 + sum(w for _, w in pairs)
        else:
            assert isinstance(node, yaml.ScalarNode)
            made = self._scalar(node, path), 1
        self._open.discard(id(node))
        if made[1] > MAX_WEIGHT:
            self._problem(node, path, "the YAML aliases in it write out to too many values")
            made = ScalarNode(line, "", None, plain=True), 1
        self._built[id(node)] = made
        return made

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> ScalarNode:
        line = node.start_mark.line + 1
        text = str(node.value)
        try:
            value = _construct(node)
        except ValueError as error:
            self._problem(node, path, str(error))
            value = text
        return ScalarNode(line, text, value, plain=not node.style)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> tuple[MappingNode, int]:
        entries: dict[str, MappingEntry] = {}
        merged: dict[str, MappingEntry] = {}
        weight = 1
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._problem(key, path, "a key must be plain text")
                continue
            name = str(key.value)
            line = key.start_mark.line + 1
            child, child_weight = self._weighed(value, (*path, name))
            weight += child_weight
            if key.tag == _TAG + "merge":
                self._merge(child, value, path, merged)
            elif name in entries:
                first = entries[name].line
                message = f"is given twice; the first is in line {first}"
                self.problems.append(Problem(self._file, line, dotted((*path, name)), message))
            else:
                entries[name] = MappingEntry(line, child)
        # Own keys take precedence over merged ones, at any position of the `<<`.
        result = {**merged, **entries}
        return MappingNode(node.start_mark.line + 1, MappingProxyType(result)), weight

    def _merge(
        self, child: Node, node: yaml.Node, path: Path, into: dict[str, MappingEntry]
    ) -> None:
        sources = child.items if isinstance(child, SequenceNode) else (child,)
        for source in sources:
            if not isinstance(source, MappingNode):
                self._problem(node, path, "<< merges sections, nothing else")
                continue
            for name, entry in source.entries.items():
                into.setdefault(name, entry)
