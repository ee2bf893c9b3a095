"""GBNF for JSON numbers within bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

from workers.gbnf import literal

DIGITS = 16
"""Digits of a number at most: more are beyond what a double tells apart, and a model that has
lost its way would write them for ever."""
FRACTION = f'("." [0-9]{{1,{DIGITS}}})'
NOT_WHOLE = f'("." [0-9]{{0,{DIGITS - 2}}} [1-9])'
INTEGER = f'"-"? ("0" | [1-9] [0-9]{{0,{DIGITS - 1}}})'
NUMBER = f"{INTEGER} {FRACTION}? ([eE] [-+]? [0-9]{{1,2}})?"


@dataclass(frozen=True)
class Bounds:
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


def numbers(bounds: Bounds) -> list[str]:
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
