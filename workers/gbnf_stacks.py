"""In how many ways at once a text can be read by a grammar. Pure.

llama.cpp keeps one stack for each way in which what has come so far may go on. For most grammars
these are a handful. But where a rule leads back to itself along several paths that look alike, each
character may double them, and a few dozen of them take all time and memory there is. So it is tried
here before: characters that keep as many ways open as possible, for a while. A grammar that gets
through may still be slow, but none that explodes at once does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from heapq import heappop, heappush

from workers.gbnf_shape import Item, Sequence, Shape

MOST_WAYS = 256
"""Ways at once that any grammar may have; one with many alternatives may have twice as many."""
EFFORT = 6_000
"""Looks at a place in the grammar before it is taken for fine: some 10 ms."""
TRIED = 6
"""Characters that are tried behind one text."""
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_CHARACTER = re.compile(r"\\x(..)|\\u(....)|\\U(........)|\\(.)|(.)", re.DOTALL)
_ELSEWHERE = "a0 \n一"
"""What may be in a set that only says what is not."""

Set = tuple[bool, tuple[tuple[int, int], ...]]
"""Characters from and to; True: all but these."""
Element = Set | int
"""A set, or the number of a rule."""
Node = tuple[int, int, int]
"""A place: the number of an alternative, how far in it, and the place to go on from after it."""


class TooManyWaysError(ValueError):
    """A text can be read in too many ways; the message tells how many at least."""


def check_ways(shape: Shape) -> None:
    """Raises TooManyWaysError for a grammar whose ways get out of hand."""
    _Ways(shape).explore()


class _Ways:
    def __init__(self, shape: Shape) -> None:
        self._alternatives: list[list[Element]] = []
        self._rules: list[list[int]] = []
        """The numbers of each rule's alternatives."""
        self._names = {name: self._reserve() for name in shape.rules}
        for name, sequences in shape.rules.items():
            self._define(self._names[name], sequences)
        self._nodes: dict[Node, int] = {}
        self._places: list[Node] = []
        self._effort = EFFORT
        self._limit = max(MOST_WAYS, 2 * len(self._alternatives))

    def explore(self) -> None:
        """Looks for texts with as many ways as possible."""
        start = self._expand(
            [self._node(alternative, 0, -1) for alternative in self._rules[self._names["root"]]]
        )
        seen, waiting, number = {start}, [(-len(start), 0, start)], 0
        while waiting and self._effort > 0:
            _, _, state = heappop(waiting)
            for character in self._characters(state):
                after = self._after(state, character)
                if len(after) > self._limit:
                    raise TooManyWaysError(str(len(after)))
                if after and after not in seen:
                    seen.add(after)
                    number += 1
                    heappush(waiting, (-len(after), number, after))

    # From a shape to alternatives of sets and rules, as llama.cpp has them.

    def _reserve(self) -> int:
        self._rules.append([])
        return len(self._rules) - 1

    def _define(self, rule: int, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self._add(rule, [element for item in sequence for element in self._elements(item)])

    def _add(self, rule: int, alternative: list[Element]) -> None:
        self._alternatives.append(alternative)
        self._rules[rule].append(len(self._alternatives) - 1)

    def _elements(self, item: Item) -> list[Element]:
        if item.name:
            return [self._names[item.name]]
        if item.group is None:
            return list(_sets(item.word))
        inner = self._reserve()
        self._define(inner, item.group)
        found: list[Element] = [inner] * item.least
        if item.most is None:
            again = self._reserve()
            self._add(again, [inner, again])
            self._add(again, [])
            return [*found, again]
        rest: list[Element] = []
        for _ in range(item.most - item.least):
            optional = self._reserve()
            self._add(optional, [inner, *rest])
            self._add(optional, [])
            rest = [optional]
        return found + rest

    # Places, and what follows them.

    def _node(self, alternative: int, at: int, then: int) -> int:
        place = (alternative, at, then)
        number = self._nodes.get(place)
        if number is None:
            number = self._nodes[place] = len(self._places)
            self._places.append(place)
        return number

    def _expand(self, nodes: list[int]) -> frozenset[int]:
        """The places before a character that can be reached from these."""
        found, seen = set(), set(nodes)
        while nodes:
            self._effort -= 1
            node = nodes.pop()
            alternative, at, then = self._places[node]
            elements = self._alternatives[alternative]
            if at == len(elements):
                reached = [then] if then >= 0 else []
            elif isinstance(element := elements[at], int):
                after = self._node(alternative, at + 1, then) if at + 1 < len(elements) else then
                reached = [self._node(choice, 0, after) for choice in self._rules[element]]
            else:
                found.add(node)
                continue
            nodes += [one for one in reached if one not in seen]
            seen.update(reached)
        return frozenset(found)

    def _set(self, node: int) -> Set:
        alternative, at, _ = self._places[node]
        element = self._alternatives[alternative][at]
        if isinstance(element, int):
            raise TypeError("a rule is no set")
        return element

    def _after(self, state: frozenset[int], character: int) -> frozenset[int]:
        going = []
        for node in state:
            if _has(self._set(node), character):
                alternative, at, then = self._places[node]
                going.append(self._node(alternative, at + 1, then))
        self._effort -= len(state)
        return self._expand(going)

    def _characters(self, state: frozenset[int]) -> list[int]:
        """Those that most of the places take."""
        sets = {self._set(node) for node in state}
        offered = {ranges[0][0] for negated, ranges in sets if ranges and not negated}
        if any(negated for negated, _ in sets):
            offered.update(map(ord, _ELSEWHERE))
        self._effort -= len(offered) * len(sets) // 8
        ranked = sorted(offered, key=lambda one: (-sum(_has(any_, one) for any_ in sets), one))
        return ranked[:TRIED]


def _has(wanted: Set, character: int) -> bool:
    negated, ranges = wanted
    return any(low <= character <= high for low, high in ranges) is not negated


def _sets(word: str) -> Iterator[Set]:
    """A terminal: a text, a set, or any character."""
    if word == ".":
        yield (True, ())
    elif word.startswith('"'):
        for character in _characters_of(word[1:-1]):
            yield (False, ((character, character),))
    else:
        negated = word.startswith("[^")
        yield (negated, tuple(_ranges(word[2 if negated else 1 : -1])))


def _characters_of(text: str) -> Iterator[int]:
    for found in _CHARACTER.finditer(text):
        number = found[1] or found[2] or found[3]
        try:
            yield (
                int(number, 16)
                if number
                else ord(_ESCAPES.get(found[4], found[4]) if found[4] else found[5])
            )
        except ValueError:
            yield 0  # llama.cpp refuses it


def _ranges(inner: str) -> Iterator[tuple[int, int]]:
    words = [found[0] for found in _CHARACTER.finditer(inner)]
    at = 0
    while at < len(words):
        low = next(_characters_of(words[at]))
        if at + 2 < len(words) and words[at + 1] == "-":
            yield low, next(_characters_of(words[at + 2]))
            at += 3
        else:
            yield low, low
            at += 1
