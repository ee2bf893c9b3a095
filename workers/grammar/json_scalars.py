"""GBNF for JSON numbers within bounds, and for JSON strings of a length, format or pattern.

Patterns are the regular expressions that JSON Schema recommends (the common subset of ECMA-262's),
except those that no grammar can express: look-around and back-references.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal

from workers.grammar.gbnf import MAX_REPETITIONS, literal

DIGITS = 16
"""Digits of a number at most: a double can't distinguish more, and a model that repeats itself
would generate them without end."""
FRACTION = f'("." [0-9]{{1,{DIGITS}}})'
NOT_WHOLE = f'("." [0-9]{{0,{DIGITS - 2}}} [1-9])'
INTEGER = f'"-"? ("0" | [1-9] [0-9]{{0,{DIGITS - 1}}})'
NUMBER = f"{INTEGER} {FRACTION}? ([eE] [-+]? [0-9]{{1,2}})?"


@dataclass(frozen=True)
class LengthBounds:
    """Lower and upper bound of a number; None: unbounded."""

    least: Decimal | None = None
    most: Decimal | None = None
    above: bool = False
    """True if `least` itself is excluded."""
    below: bool = False
    """True if `most` itself is excluded."""

    @property
    def none(self) -> bool:
        """True if the number is unbounded on both sides."""
        return self.least is None and self.most is None

    def holds(self, value: Decimal) -> bool:
        """Return True if `value` is within the bounds."""
        if self.least is not None and (value < self.least or (self.above and value == self.least)):
            return False
        return self.most is None or value < self.most or (not self.below and value == self.most)

    @property
    def first(self) -> int | None:
        """The smallest integer within the bounds; None: unbounded."""
        if self.least is None:
            return None
        first = math.ceil(self.least)
        return first + 1 if self.above and first == self.least else first

    @property
    def last(self) -> int | None:
        """The largest integer within the bounds; None: unbounded."""
        if self.most is None:
            return None
        last = math.floor(self.most)
        return last - 1 if self.below and last == self.most else last


def integers(first: int | None, last: int | None) -> list[str]:
    """Return alternatives for the integers from `first` to `last`, both included."""
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
    """Return alternatives for numbers within `bounds`; an empty list if there are none.

    They match a subset: all integers, all decimal fractions whose neighbouring integers are within
    the bounds too, and the bounds themselves.
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
    """Return alternatives for fractions between integers within the bounds, each after `sign`.

    `open_`: `least` itself is excluded.
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
    """Return alternatives for integers from `first`, 0 or more, without leading zeros."""
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
    """Return alternatives for digit strings of one length from `least` to `most`."""
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
"""A character of a string, never half of a surrogate pair."""

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
"""Formats of JSON Schema that are enforced, without the quotes; others are annotations."""


class PatternError(ValueError):
    """A regular expression without a grammar; the message is one sentence."""


def of_length(least: int, most: int | None) -> str:
    """Return GBNF for a string of `least` to `most` characters; it uses a rule `char`."""
    if least == 0 and most is None:
        return '"\\"" char* "\\""'
    return f'"\\"" char{{{least},{"" if most is None else most}}} "\\""'


def of_format(name: str) -> str:
    """Return GBNF for a string of a format in FORMATS."""
    return f'"\\"" {FORMATS[name]} "\\""'


def matching(pattern: str) -> str:
    """Return GBNF for a string that contains `pattern`; it uses a rule `char`.

    Raises PatternError.
    """
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
"""Characters that a JSON string must escape."""


class _Pattern:
    """A recursive-descent translator of one regular expression to GBNF."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0

    def whole(self) -> str:
        """Return the GBNF; without an anchor, any text may come before or after a match."""
        alternatives = [self._anchored()]
        while self._take("|"):
            alternatives.append(self._anchored())
        if self._at < len(self._source):
            raise self._error("there is no open parenthesis to close")
        return " | ".join(alternatives)

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
                raise self._error("look-around and named groups are not supported")
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
            raise self._error(f"{character} is not allowed there")
        return _one_of([(ord(character), ord(character))])

    def _quantifier(self) -> str:
        found = re.compile(r"[*+?]|\{(\d+)(,(\d*))?\}").match(self._source, self._at)
        if found is None:
            return ""
        self._at = found.end()
        self._take("?")  # lazy and greedy match the same strings
        bounds = [int(bound) for bound in (found[1], found[3]) if bound]
        if any(bound > MAX_REPETITIONS for bound in bounds) or sorted(bounds) != bounds:
            raise self._error(f"{found[0]} is no valid repetition")
        return found[0]

    def _escape(self) -> Ranges:
        """Parse an escape after its backslash; return ranges of characters."""
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
            raise self._error(f"\\{character} is not supported")
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
            raise self._error("it is incomplete")
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
    """Return `ranges` without `holes`."""
    for low, high in holes:
        ranges = [
            part
            for first, last in ranges
            for part in ((first, min(last, low - 1)), (max(first, high + 1), last))
            if part[0] <= part[1]
        ]
    return ranges


def _one_of(ranges: Ranges) -> str:
    """Return GBNF for one character of `ranges` in a JSON string."""
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
        raise PatternError("The pattern has a set of characters that no JSON string can contain.")
    return found[0] if len(found) == 1 else f"({' | '.join(found)})"


def _range(low: int, high: int) -> str:
    return _coded(low) if low == high else f"{_coded(low)}-{_coded(high)}"


def _coded(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else f"\\U{code:08X}"
