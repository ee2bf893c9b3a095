"""GBNF for JSON numbers within bounds.

GBNF for JSON strings: of any length, of a format, or after a regular expression.

The expressions are those that JSON Schema recommends (the common part of ECMA-262's), as far as
a grammar can say them: no look-around, no references back.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal

from workers.grammar.gbnf import MOST_REPEATED, literal

DIGITS = 16
"""Digits of a number at most: more are beyond what a double tells apart, and a model that has
lost its way would write them for ever."""
FRACTION = f'("." [0-9]{{1,{DIGITS}}})'
NOT_WHOLE = f'("." [0-9]{{0,{DIGITS - 2}}} [1-9])'
INTEGER = f'"-"? ("0" | [1-9] [0-9]{{0,{DIGITS - 1}}})'
NUMBER = f"{INTEGER} {FRACTION}? ([eE] [-+]? [0-9]{{1,2}})?"


@dataclass(frozen=True)
class LengthBounds:
    """Of a number; None: there is none on this side."""

    least: Decimal | None = None
    most: Decimal | None = None
    above: bool = False
    """`least` itself is not allowed."""
    below: bool = False
    """`most` itself is not allowed."""

    @property
    def none(self) -> bool:
        """Whether any number will do."""
        return self.least is None and self.most is None

    def holds(self, value: Decimal) -> bool:
        """Whether `value` lies within."""
        if self.least is not None and (value < self.least or (self.above and value == self.least)):
            return False
        return self.most is None or value < self.most or (not self.below and value == self.most)

    @property
    def first(self) -> int | None:
        """The smallest whole number within."""
        if self.least is None:
            return None
        first = math.ceil(self.least)
        return first + 1 if self.above and first == self.least else first

    @property
    def last(self) -> int | None:
        """The largest whole number within."""
        if self.most is None:
            return None
        last = math.floor(self.most)
        return last - 1 if self.below and last == self.most else last


def integers(first: int | None, last: int | None) -> list[str]:
    """Alternatives for the whole numbers from `first` to `last`, both included; none if empty."""
    if first is None and last is None:
        return [INTEGER]
    found = []
    if first is None or first < 0:
        least = 1 if last is None or last >= 0 else -last
        naturals = _naturals(least, None if first is None else -first)
        found += [f'"-" {natural}' for natural in naturals]
    if last is None or last >= 0:
        found += _naturals(max(first or 0, 0), last)
    return found


def numbers(bounds: LengthBounds) -> list[str]:
    """Alternatives for numbers within `bounds`: not each of them, but nothing else.

    All whole numbers, all decimal fractions whose neighbouring whole numbers are within too,
    and the bounds themselves. None if that leaves nothing.
    """
    if bounds.none:
        return [NUMBER]
    found = integers(bounds.first, bounds.last)
    found += _fractions("", bounds.least, bounds.most, open_=bounds.above)
    below, above = _negated(bounds.most), _negated(bounds.least)
    found += _fractions('"-" ', below, above, open_=bounds.below)
    ends = {end for end in (bounds.least, bounds.most) if end is not None and end % 1 != 0}
    found += [literal(f"{end:f}") for end in sorted(ends) if bounds.holds(end)]
    return found


def _fractions(sign: str, least: Decimal | None, most: Decimal | None, *, open_: bool) -> list[str]:
    """Decimal fractions, positive but for `sign`, between whole numbers within the bounds.

    `open_`: `least` itself is not allowed.
    """
    first = 0 if least is None or least < 0 else math.ceil(least)
    last = None if most is None else math.floor(most) - 1
    found = []
    if open_ and first == least and (last is None or first <= last):
        found.append(f'{sign}"{first}" {NOT_WHOLE}')
        first += 1
    if last is None or first <= last:
        found += [f"{sign}{natural} {FRACTION}" for natural in _naturals(first, last)]
    return found


def _negated(bound: Decimal | None) -> Decimal | None:
    return None if bound is None else -bound


def _naturals(first: int, last: int | None) -> list[str]:
    """Whole numbers from `first` (0 or more) on, without leading zeros."""
    length = len(str(first))
    found = []
    if last is None:
        if length < DIGITS:
            found.append(f"[1-9] [0-9]{{{length},{DIGITS - 1}}}")
        last = 10**length - 1
    for size in range(length, len(str(last)) + 1):
        least = max(first, 10 ** (size - 1) if size > 1 else 0)
        most = min(last, 10**size - 1)
        if least <= most:
            found += _between(str(least), str(most))
    return found


def _between(least: str, most: str) -> list[str]:
    """Digit strings of one length from `least` to `most`."""
    rest = len(least) - 1
    if rest == 0:
        return [f"[{least}-{most}]"]
    if least[0] == most[0]:
        return [f'"{least[0]}" {tail}' for tail in _between(least[1:], most[1:])]
    low, high = int(least[0]), int(most[0])
    found = []
    if least[1:] != "0" * rest:
        found += [f'"{low}" {tail}' for tail in _between(least[1:], "9" * rest)]
        low += 1
    upper = []
    if most[1:] != "9" * rest:
        upper = [f'"{high}" {tail}' for tail in _between("0" * rest, most[1:])]
        high -= 1
    if low <= high:
        found.append(f"[{low}-{high}] [0-9]{{{rest}}}")
    return found + upper


CHARACTER = (
    r'[^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt]'
    r' | "u" ([0-9a-cA-CefEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}))'
)
"""One character of a string: never half of a surrogate pair."""

_DAYS = (
    '(("0" [13578] | "1" [02]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])'
    ' | ("0" [469] | "11") "-" ("0" [1-9] | [12] [0-9] | "30")'
    ' | "02-" ("0" [1-9] | "1" [0-9] | "2" [0-8]))'
)
_DATE = f'[0-9]{{3}} [1-9] "-" {_DAYS}'
_CLOCK = '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]'
_TIME = f'{_CLOCK} ":" [0-5] [0-9] ("." [0-9]{{1,6}})? ("Z" | [-+] {_CLOCK})'
_BYTE = '("25" [0-5] | "2" [0-4] [0-9] | "1" [0-9]{2} | [1-9]? [0-9])'
_HEX = "[0-9a-fA-F]"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "uuid": f'{_HEX}{{8}} ("-" {_HEX}{{4}}){{3}} "-" {_HEX}{{12}}',
    "ipv4": f'{_BYTE} ("." {_BYTE}){{3}}',
    "email": '[a-z0-9] [a-z0-9._+]{0,30} [a-z0-9] "@" ([a-z0-9]{1,30} "."){1,4} [a-z]{2,10}',
}
"""`format`s of JSON Schema that are enforced, without the quotes; others are annotations."""


class PatternError(ValueError):
    """A regular expression that no grammar can be made of; the message is one sentence."""


def of_length(least: int, most: int | None) -> str:
    """A string of so many characters, given a rule `char`."""
    if least == 0 and most is None:
        return '"\\"" char* "\\""'
    return f'"\\"" char{{{least},{"" if most is None else most}}} "\\""'


def of_format(name: str) -> str:
    """A string of one of FORMATS."""
    return f'"\\"" {FORMATS[name]} "\\""'


def matching(pattern: str) -> str:
    """A string in which `pattern` is found, given a rule `char`. Raises PatternError."""
    return f'"\\"" ({_Pattern(pattern).whole()}) "\\""'


Ranges = list[tuple[int, int]]
_DIGIT: Ranges = [(0x30, 0x39)]
_WORD: Ranges = [*_DIGIT, (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_SPACE: Ranges = [(0x09, 0x0D), (0x20, 0x20)]
_SETS = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_NOT_PLAIN: Ranges = [
    (0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F), (0xD800, 0xDFFF)
]  # fmt: skip
"""What a JSON string can't have as it is."""


class _Pattern:
    """A regular expression, read from left to right into GBNF."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0

    def whole(self) -> str:
        """The expression, with anything before and after it where it has no anchor."""
        found = [self._anchored()]
        while self._take("|"):
            found.append(self._anchored())
        if self._at < len(self._source):
            raise self._error("a parenthesis is closed that was never opened")
        return " | ".join(found)

    def _anchored(self) -> str:
        start = self._take("^")
        body = self._sequence()
        end = self._take("$")
        if end and self._peek() not in {"", "|"}:
            raise self._error("$ can only stand at the end")
        return f"{'' if start else 'char* '}{body}{'' if end else ' char*'}"

    def _alternatives(self) -> str:
        found = [self._sequence()]
        while self._take("|"):
            found.append(self._sequence())
        return " | ".join(found)

    def _sequence(self) -> str:
        items = []
        while self._peek() not in {"", "|", ")", "$"}:
            items.append(self._atom() + self._quantifier())
        return " ".join(items) or '""'

    def _atom(self) -> str:
        character = self._next()
        if character == "(":
            if self._take("?") and not self._take(":"):
                raise self._error("there is no look-around, and no named group, in a grammar")
            inner = self._alternatives()
            if not self._take(")"):
                raise self._error("a parenthesis is not closed")
            return f"({inner})"
        if character == "[":
            return self._class()
        if character == ".":
            return _one_of(_without([(0, 0x10FFFF)], [(0x0A, 0x0A), (0x0D, 0x0D)]))
        if character == "\\":
            return _one_of(self._escape())
        if character in "^*+?{":
            raise self._error(f"{character} makes no sense there")
        return _one_of([(ord(character), ord(character))])

    def _quantifier(self) -> str:
        found = re.compile(r"[*+?]|\{(\d+)(,(\d*))?\}").match(self._source, self._at)
        if found is None:
            return ""
        self._at = found.end()
        self._take("?")  # lazy or greedy: the same strings
        bounds = [int(bound) for bound in (found[1], found[3]) if bound]
        if any(bound > MOST_REPEATED for bound in bounds) or sorted(bounds) != bounds:
            raise self._error(f"{found[0]} is no repetition for a grammar")
        return found[0]

    def _escape(self) -> Ranges:
        """What follows a backslash, as ranges of characters."""
        character = self._next()
        if character.lower() in _SETS:
            ranges = _SETS[character.lower()]
            return ranges if character.islower() else _without([(0, 0x10FFFF)], ranges)
        if character in "xu":
            digits = self._source[self._at : self._at + (2 if character == "x" else 4)]
            if not re.fullmatch(r"[0-9a-fA-F]{2}|[0-9a-fA-F]{4}", digits):
                raise self._error("the escape is not complete")
            self._at += len(digits)
            code = int(digits, 16)
        elif character in _CONTROLS:
            code = ord(_CONTROLS[character])
        elif character.isalnum():
            raise self._error(f"\\{character} can't be said in a grammar")
        else:
            code = ord(character)
        return [(code, code)]

    def _class(self) -> str:
        negated = self._take("^")
        ranges: Ranges = []
        while not self._take("]"):
            low = self._member()
            if self._peek() == "-" and self._source[self._at + 1 : self._at + 2] not in {"]", ""}:
                self._next()
                high = self._member()
                if len(low) > 1 or len(high) > 1 or high[0][1] < low[0][0]:
                    raise self._error("a range of characters ends before it begins")
                low = [(low[0][0], high[0][1])]
            ranges += low
        return _one_of(_without([(0, 0x10FFFF)], ranges) if negated else ranges)

    def _member(self) -> Ranges:
        character = self._next()
        return self._escape() if character == "\\" else [(ord(character), ord(character))]

    def _peek(self) -> str:
        return self._source[self._at : self._at + 1]

    def _next(self) -> str:
        character = self._peek()
        if not character:
            raise self._error("it ends too early")
        self._at += 1
        return character

    def _take(self, character: str) -> bool:
        if self._peek() != character:
            return False
        self._at += 1
        return True

    def _error(self, what: str) -> PatternError:
        return PatternError(f"The pattern {self._source!r} can't be used: {what}.")


def _without(ranges: Ranges, holes: Ranges) -> Ranges:
    """`ranges` less `holes`."""
    for low, high in holes:
        ranges = [
            part
            for first, last in ranges
            for part in ((first, min(last, low - 1)), (max(first, high + 1), last))
            if part[0] <= part[1]
        ]
    return ranges


def _one_of(ranges: Ranges) -> str:
    """One character of `ranges`, as a JSON string has it."""
    plain = _without(ranges, _NOT_PLAIN)
    found = []
    if plain:
        found.append("[" + "".join(_range(low, high) for low, high in plain) + "]")
    found += [
        literal(json.dumps(character)[1:-1])
        for character in '"\\\t\n\r'
        if any(low <= ord(character) <= high for low, high in ranges)
    ]
    if not found:
        raise PatternError("The pattern has a set of characters that a JSON string can't have.")
    return found[0] if len(found) == 1 else f"({' | '.join(found)})"


def _range(low: int, high: int) -> str:
    return _coded(low) if low == high else f"{_coded(low)}-{_coded(high)}"


def _coded(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else f"\\U{code:08X}"
