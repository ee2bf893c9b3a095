"""Checks of GBNF, llama.cpp's grammar notation, before llama.cpp reads it. Pure.

llama.cpp trusts the author of a grammar: a repetition whose upper bound is below the lower one
takes all memory, deep nesting overflows the stack, left recursion after an empty expression never
ends, and tokens by number (`!<[5]>`) abort the process. It also prints the reason for rejecting a
grammar instead of returning it. So grammars of clients are checked here first, in three passes:

1. Syntax. llama.cpp's `grammars/README.md` describes the notation; tokens by number are excluded.
2. Termination. llama.cpp detects left recursion, but not after an expression that can be empty, and
   it repeats an expression that can be empty without end; then it hangs, with every stream.
3. Ambiguity. llama.cpp keeps one stack for each way in which the text so far may continue. Most
   grammars have a handful. But if a rule leads back to itself along several similar paths, each
   character may double them, and a few dozen characters take all time and memory. So the check
   simulates characters that keep as many ways open as possible, up to a fixed effort. A grammar
   that passes may still be slow, but does not explode at once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

Sequence = list["Item"]


@dataclass(eq=False)
class Item:
    """An element of a sequence: a rule's name, a group, or a terminal (neither)."""

    name: str = ""
    group: list[Sequence] | None = None
    empty: bool = False
    """True if it is optional, or an empty terminal."""
    repeats: bool = False
    """True if it may occur more than once."""
    word: str = ""
    """Source text of a terminal."""
    least: int = 1
    """Repetitions of a group at least."""
    most: int | None = 1
    """Repetitions of a group at most; None: no limit."""


@dataclass
class GrammarShape:
    """A grammar's rules, built token by token from left to right."""

    rules: dict[str, list[Sequence]] = field(default_factory=dict)
    _open: list[list[Sequence]] = field(default_factory=list)

    def rule(self, name: str) -> None:
        """Begin a rule; an earlier one of the same name is replaced."""
        self.rules[name] = [[]]
        self._open = [self.rules[name]]

    def add(self, item: Item) -> None:
        """Append an item to the sequence."""
        self._open[-1][-1].append(item)

    def alternative(self) -> None:
        """Begin an alternative sequence."""
        self._open[-1].append([])

    def open(self) -> None:
        """Begin a group."""
        group: list[Sequence] = [[]]
        self.add(Item(group=group))
        self._open.append(group)

    def close(self) -> None:
        """End the group."""
        self._open.pop()

    def repeat(self, least: int, most: int | None) -> None:
        """Repeat the last item."""
        before = self._open[-1][-1].pop()
        repeats = most is None or most > 1
        item = Item(group=[[before]], empty=least == 0, repeats=repeats, least=least, most=most)
        self._open[-1][-1].append(item)


def termination_error(shape: GrammarShape) -> str | None:
    """Return the reason why matching may not terminate; None if it does."""
    empty = _empty_rules(shape.rules)
    for name, sequences in shape.rules.items():
        for item in _all_items(sequences):
            if item.repeats and _group_empty(item.group or [], empty):
                return f"rule {name} repeats an item that may be empty"
    edges = {name: set(_first_names(found, empty)) for name, found in shape.rules.items()}
    looping = _in_cycles(edges)
    return f"rule {looping} begins with itself" if looping else None


def _empty_rules(rules: Mapping[str, list[Sequence]]) -> set[str]:
    """Return the rules that match an empty text."""
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
    """Yield the rules that may come first in a match."""
    for sequence in sequences:
        for item in sequence:
            if item.name:
                yield item.name
            yield from _first_names(item.group or [], empty)
            if not _item_empty(item, empty):
                break


def _in_cycles(edges: dict[str, set[str]]) -> str:
    """Return a name on a cycle; empty if there is none."""
    left = dict(edges)
    while True:
        ends = {name for name, others in left.items() if not others & left.keys()}
        if not ends:
            return next(iter(left), "")
        for name in ends:
            del left[name]


MAX_WAYS = 256
"""Simultaneous ways that any grammar may have; the limit is twice its alternatives if more."""
EFFORT = 6_000
"""Visits of grammar positions until the grammar passes: some 10 ms."""
TRIED = 6
"""Characters that are tried after one text."""
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_CHARACTER = re.compile(r"\\x(..)|\\u(....)|\\U(........)|\\(.)|(.)", re.DOTALL)
_ELSEWHERE = "a0 \n一"
"""Candidate characters for a negated set."""

Set = tuple[bool, tuple[tuple[int, int], ...]]
"""Ranges of characters, first and last; True: all except these."""
Element = Set | int
"""A set, or the number of a rule."""
Node = tuple[int, int, int]
"""A position: the number of an alternative, the index in it, and the node to return to."""


class AmbiguousGrammarError(ValueError):
    """A grammar with too many simultaneous ways; the message is their number at least."""


def check_ambiguity(shape: GrammarShape) -> None:
    """Raise AmbiguousGrammarError for a grammar with too many simultaneous ways."""
    _AmbiguitySearch(shape).explore()


class _AmbiguitySearch:
    def __init__(self, shape: GrammarShape) -> None:
        self._alternatives: list[list[Element]] = []
        self._rules: list[list[int]] = []
        """Numbers of each rule's alternatives."""
        self._names = {name: self._reserve() for name in shape.rules}
        for name, sequences in shape.rules.items():
            self._define(self._names[name], sequences)
        self._nodes: dict[Node, int] = {}
        self._places: list[Node] = []
        self._effort = EFFORT
        self._limit = max(MAX_WAYS, 2 * len(self._alternatives))

    def explore(self) -> None:
        """Search for texts with as many ways as possible, the most ambiguous states first."""
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

    # Conversion to alternatives of sets and rules, as in llama.cpp.

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

    # Positions and their successors.

    def _node(self, alternative: int, at: int, then: int) -> int:
        place = (alternative, at, then)
        number = self._nodes.get(place)
        if number is None:
            number = self._nodes[place] = len(self._places)
            self._places.append(place)
        return number

    def _expand(self, nodes: list[int]) -> frozenset[int]:
        """Return the positions before a character that are reachable from `nodes`."""
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
            raise TypeError("the element is a rule, not a set")
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
        """Return the characters that most of the positions match."""
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
    """Yield the sets of a terminal: a text, a set, or any character."""
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
            yield 0  # llama.cpp rejects it


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
MAX_RULES = 10_000
MAX_DEPTH = 100
"""Nested parentheses; llama.cpp parses them by recursion."""
MAX_REPETITIONS = 2000
"""llama.cpp's limit for one repetition (MAX_REPETITION_THRESHOLD)."""

_TOKEN = re.compile(
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
    """An invalid or unsupported grammar; the message is one sentence."""


def literal(text: str) -> str:
    """Return `text` as a terminal."""
    return '"' + "".join(map(_escaped, text)) + '"' if not _PLAIN.fullmatch(text) else f'"{text}"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return f"\\x{ord(character):02X}" if ord(character) < 0x20 or character == "\x7f" else character


def check(text: str) -> None:
    """Raise GrammarError for an invalid grammar, or one that llama.cpp can't process."""
    if len(text) > LONGEST:
        raise GrammarError(f"The grammar has more than {LONGEST} characters.")
    if "\x00" in text:
        raise GrammarError("The grammar has a zero byte.")
        # Syntax, token by token, which fills the shape for the other two passes.
    shape = GrammarShape()
    used: dict[str, int] = {}
    opened: list[int] = []
    before, at = "", 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise _error(text, at, f"{_excerpt(text, at)} is not allowed there")
        kind = str(token.lastgroup)
        if kind != "blank":
            _check_token(text, at, kind, before, opened)
            before = kind
        if kind == "name":
            used.setdefault(token[0], at)
        elif kind == "open":
            opened.append(at)
        elif kind == "close":
            opened.pop()
        _add_token(shape, kind, text, at, token[0])
        at = token.end()
    if opened:
        raise _error(text, opened[-1], "the parenthesis is never closed")
    _check_names(text, shape.rules.keys(), used)
    reason = termination_error(shape)
    if reason is not None:
        raise GrammarError(f"The grammar may not terminate: {reason}.")
    try:
        check_ambiguity(shape)
    except AmbiguousGrammarError as error:
        raise GrammarError(
            f"The grammar is too ambiguous: a text has {error} simultaneous parses."
        ) from error


def _add_token(shape: GrammarShape, kind: str, text: str, at: int, word: str) -> None:
    """Add a token to the shape of the grammar."""
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


def _check_token(text: str, at: int, kind: str, before: str, opened: list[int]) -> None:
    """Raise GrammarError if a token of this `kind` is not allowed here."""
    if not before and kind != "rule":
        raise _error(text, at, "a rule was expected, as in root ::= ...")
    if kind == "rule" and opened:
        raise _error(text, opened[-1], "the parenthesis is never closed")
    if kind == "close" and not opened:
        raise _error(text, at, "there is no open parenthesis to close")
    if kind == "item" and text.startswith(("[]", "[^]"), at):
        raise _error(text, at, "the set of characters is empty")
    if kind == "repeat" and before == "repeat":
        raise _error(text, at, "a repetition is repeated, which is ambiguous")
    if kind == "repeat" and before not in {"name", "item", "close"}:
        raise _error(text, at, "there is nothing to repeat")
    if kind == "open" and len(opened) >= MAX_DEPTH:
        raise _error(text, at, f"more than {MAX_DEPTH} parentheses are open")


def _bounds(text: str, at: int, repeat: str) -> tuple[int, int | None]:
    """Return the lower and upper bound of a repetition; None: no upper bound."""
    if repeat in "*+?":
        return int(repeat == "+"), 1 if repeat == "?" else None
    bounds = [int(number) for number in re.findall(r"\d+", repeat)]
    if len(bounds) == 2 and bounds[1] < bounds[0]:
        raise _error(text, at, f"{repeat} ends before it begins")
    if any(bound > MAX_REPETITIONS for bound in bounds):
        raise _error(text, at, f"{repeat} is more than {MAX_REPETITIONS} times")
    return bounds[0], None if "," in repeat and len(bounds) == 1 else bounds[-1]


def _check_names(text: str, defined: Collection[str], used: dict[str, int]) -> None:
    for name, at in used.items():
        if name not in defined:
            raise _error(text, at, f"there is no rule {name}")
    if "root" not in defined:
        raise GrammarError("The grammar has no rule root.")
    if len(defined) > MAX_RULES:
        raise GrammarError(f"The grammar has more than {MAX_RULES} rules.")


def _error(text: str, at: int, what: str) -> GrammarError:
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1) + 1
    return GrammarError(f"The grammar does not parse: line {line}, column {column}: {what}.")


def _excerpt(text: str, at: int) -> str:
    return repr(text[at : at + 12].partition("\n")[0])
