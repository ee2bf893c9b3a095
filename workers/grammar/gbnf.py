"""GBNF, llama.cpp's notation for grammars: written, and looked over before llama.cpp reads it.

llama.cpp trusts whoever writes a grammar: a repetition that ends before it begins takes all
memory, deep nesting all of the stack, a rule that begins with itself behind something empty all of
the time, and tokens by number (`!<[5]>`) end the process. And it prints its reason for refusing a
grammar instead of returning it. So a client's is checked here first. What the notation is,
llama.cpp's `grammars/README.md` tells; tokens by number are left out.

What can be seen of a grammar before it runs: rules that would never come to an end.

llama.cpp finds a rule that begins with itself, but not where what stands before it may be empty,
and repeats what may be empty without end; then it hangs, and every stream with it.

In how many ways at once a text can be read by a grammar. Pure.

llama.cpp keeps one stack for each way in which what has come so far may go on. For most grammars
these are a handful. But where a rule leads back to itself along several paths that look alike, each
character may double them, and a few dozen of them take all time and memory there is. So it is tried
here before: characters that keep as many ways open as possible, for a while. A grammar that gets
through may still be slow, but none that explodes at once does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

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
class GrammarShape:
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


def endless(shape: GrammarShape) -> str | None:
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


class AmbiguousGrammarError(ValueError):
    """A text can be read in too many ways; the message tells how many at least."""


def check_ways(shape: GrammarShape) -> None:
    """Raises TooManyWaysError for a grammar whose ways get out of hand."""
    _Ways(shape).explore()


class _Ways:
    def __init__(self, shape: GrammarShape) -> None:
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
                    raise AmbiguousGrammarError(str(len(after)))
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


LONGEST = 1_000_000
"""Characters of a grammar."""
MOST_RULES = 10_000
DEEPEST = 100
"""Parentheses within each other; llama.cpp reads them by recursion."""
MOST_REPEATED = 2000
"""llama.cpp's own bound for one repetition (MAX_REPETITION_THRESHOLD)."""

_WORD = re.compile(
    r"""(?P<blank>(?:\s|\#[^\n]*)+)
    | (?P<rule>[A-Za-z0-9-]+[ \t]*::=)
    | (?P<name>[A-Za-z0-9-]+)
    | (?P<item>"(?:[^"\\]|\\.)*" | \[(?:[^\]\\]|\\.)*\] | \.)
    | (?P<repeat>[*+?] | \{[ \t]*\d+[ \t]*(?:,[ \t]*\d*[ \t]*)?\})
    | (?P<open>\() | (?P<close>\)) | (?P<or>\|)""",
    re.VERBOSE | re.DOTALL,
)
_PLAIN = re.compile(r'[^"\\\x00-\x1f\x7f]*')


class GrammarError(ValueError):
    """A grammar that can't be used; the message is one sentence."""


def literal(text: str) -> str:
    """`text` as a terminal."""
    return '"' + "".join(map(_escaped, text)) + '"' if not _PLAIN.fullmatch(text) else f'"{text}"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return f"\\x{ord(character):02X}" if ord(character) < 0x20 or character == "\x7f" else character


def check(text: str) -> None:
    """Raises GrammarError for a grammar that is none, or that llama.cpp would choke on."""
    if len(text) > LONGEST:
        raise GrammarError(f"The grammar has more than {LONGEST} characters.")
    if "\x00" in text:
        raise GrammarError("The grammar has a zero byte.")
    shape = GrammarShape()
    used: dict[str, int] = {}
    opened: list[int] = []
    before, at = "", 0
    while at < len(text):
        word = _WORD.match(text, at)
        if word is None:
            raise _error(text, at, f"{_shown(text, at)} makes no sense there")
        kind = str(word.lastgroup)
        if kind != "blank":
            _check_place(text, at, kind, before, opened)
            before = kind
        if kind == "name":
            used.setdefault(word[0], at)
        elif kind == "open":
            opened.append(at)
        elif kind == "close":
            opened.pop()
        _note(shape, kind, text, at, word[0])
        at = word.end()
    if opened:
        raise _error(text, opened[-1], "the parenthesis is never closed")
    _check_names(text, shape.rules.keys(), used)
    reason = endless(shape)
    if reason is not None:
        raise GrammarError(f"The grammar has no end: {reason}.")
    try:
        check_ways(shape)
    except AmbiguousGrammarError as error:
        raise GrammarError(
            f"The grammar is too ambiguous: a text can be read in {error} ways at once."
        ) from error


def _note(shape: GrammarShape, kind: str, text: str, at: int, word: str) -> None:
    """Adds a word to what is known of the grammar."""
    if kind == "rule":
        shape.rule(word.rstrip(":= \t"))
    elif kind == "name":
        shape.add(Item(name=word))
    elif kind == "item":
        shape.add(Item(empty=word == '""', word=word))
    elif kind == "open":
        shape.open()
    elif kind == "close":
        shape.close()
    elif kind == "or":
        shape.alternative()
    elif kind == "repeat":
        shape.repeat(*_bounds(text, at, word))


def _check_place(text: str, at: int, kind: str, before: str, opened: list[int]) -> None:
    """Whether a word of this `kind` may stand here."""
    if not before and kind != "rule":
        raise _error(text, at, "a rule was expected, as in root ::= ...")
    if kind == "rule" and opened:
        raise _error(text, opened[-1], "the parenthesis is never closed")
    if kind == "close" and not opened:
        raise _error(text, at, "nothing was opened that this closes")
    if kind == "item" and text.startswith(("[]", "[^]"), at):
        raise _error(text, at, "the set of characters is empty")
    if kind == "repeat" and before == "repeat":
        raise _error(text, at, "a repetition is repeated, which has too many meanings")
    if kind == "repeat" and before not in {"name", "item", "close"}:
        raise _error(text, at, "there is nothing to repeat")
    if kind == "open" and len(opened) >= DEEPEST:
        raise _error(text, at, f"more than {DEEPEST} parentheses are open")


def _bounds(text: str, at: int, repeat: str) -> tuple[int, int | None]:
    """How often at least, and at most; None: as often as may be."""
    if repeat in "*+?":
        return int(repeat == "+"), 1 if repeat == "?" else None
    bounds = [int(number) for number in re.findall(r"\d+", repeat)]
    if len(bounds) == 2 and bounds[1] < bounds[0]:
        raise _error(text, at, f"{repeat} ends before it begins")
    if any(bound > MOST_REPEATED for bound in bounds):
        raise _error(text, at, f"{repeat} is more than {MOST_REPEATED} times")
    return bounds[0], None if "," in repeat and len(bounds) == 1 else bounds[-1]


def _check_names(text: str, defined: Collection[str], used: dict[str, int]) -> None:
    for name, at in used.items():
        if name not in defined:
            raise _error(text, at, f"there is no rule {name}")
    if "root" not in defined:
        raise GrammarError("The grammar has no rule root.")
    if len(defined) > MOST_RULES:
        raise GrammarError(f"The grammar has more than {MOST_RULES} rules.")


def _error(text: str, at: int, what: str) -> GrammarError:
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1) + 1
    return GrammarError(f"The grammar does not parse: line {line}, column {column}: {what}.")


def _shown(text: str, at: int) -> str:
    return repr(text[at : at + 12].partition("\n")[0])
