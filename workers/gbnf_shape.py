"""What can be seen of a grammar before it runs: rules that would never come to an end.

llama.cpp finds a rule that begins with itself, but not where what stands before it may be empty,
and repeats what may be empty without end; then it hangs, and every stream with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Sequence = list["Item"]


@dataclass(eq=False)
class Item:
    """A place in a sequence: a rule's name, a group, or a terminal (neither)."""

    name: str = ""
    group: list[Sequence] | None = None
    empty: bool = False
    """It may be left out, or is an empty terminal."""
    repeats: bool = False
    """It may come more than once."""
    word: str = ""
    """A terminal as it is written."""
    least: int = 1
    """How often a group comes."""
    most: int | None = 1
    """None: as often as may be."""


@dataclass
class Shape:
    """A grammar's rules, filled word by word from left to right."""

    rules: dict[str, list[Sequence]] = field(default_factory=dict)
    _open: list[list[Sequence]] = field(default_factory=list)

    def rule(self, name: str) -> None:
        """A rule begins; one that was there before is replaced."""
        self.rules[name] = [[]]
        self._open = [self.rules[name]]

    def add(self, item: Item) -> None:
        """The next item of the sequence."""
        self._open[-1][-1].append(item)

    def alternative(self) -> None:
        """Another sequence instead of the last one."""
        self._open[-1].append([])

    def open(self) -> None:
        """A group begins."""
        group: list[Sequence] = [[]]
        self.add(Item(group=group))
        self._open.append(group)

    def close(self) -> None:
        """It ends."""
        self._open.pop()

    def repeat(self, least: int, most: int | None) -> None:
        """The last item comes so many times."""
        before = self._open[-1][-1].pop()
        repeats = most is None or most > 1
        item = Item(group=[[before]], empty=least == 0, repeats=repeats, least=least, most=most)
        self._open[-1][-1].append(item)


def endless(shape: Shape) -> str | None:
    """Why a text could never be told to fit or not to fit; None: it can."""
    empty = _empty_rules(shape.rules)
    for name, sequences in shape.rules.items():
        for item in _all_items(sequences):
            if item.repeats and _group_empty(item.group or [], empty):
                return f"rule {name} repeats what may be empty"
    edges = {name: set(_first_names(found, empty)) for name, found in shape.rules.items()}
    looping = _in_cycles(edges)
    return f"rule {looping} begins with itself" if looping else None


def _empty_rules(rules: Mapping[str, list[Sequence]]) -> set[str]:
    """The rules that an empty text fits."""
    empty: set[str] = set()
    while True:
        more = {name for name, found in rules.items() if _group_empty(found, empty)} - empty
        if not more:
            return empty
        empty |= more


def _group_empty(sequences: list[Sequence], empty: set[str]) -> bool:
    return any(all(_item_empty(item, empty) for item in sequence) for sequence in sequences)


def _item_empty(item: Item, empty: set[str]) -> bool:
    inner = item.group is not None and _group_empty(item.group, empty)
    return item.empty or item.name in empty or inner


def _all_items(sequences: list[Sequence]) -> Iterator[Item]:
    for sequence in sequences:
        for item in sequence:
            yield item
            yield from _all_items(item.group or [])


def _first_names(sequences: list[Sequence], empty: set[str]) -> Iterator[str]:
    """The rules that a text of these may begin with."""
    for sequence in sequences:
        for item in sequence:
            if item.name:
                yield item.name
            yield from _first_names(item.group or [], empty)
            if not _item_empty(item, empty):
                break


def _in_cycles(edges: dict[str, set[str]]) -> str:
    """A name that leads back to itself; empty if there is none."""
    left = dict(edges)
    while True:
        ends = {name for name, others in left.items() if not others & left.keys()}
        if not ends:
            return next(iter(left), "")
        for name in ends:
            del left[name]
