"""Whose step it is, where a step serves one set of adapters. Pure.

llama.cpp applies a set to a whole context, and changing it costs about a millisecond. So a set
keeps its turn for TURN steps while others wait, and the next is the one that has waited longest:
with n sets in use, each has a step within (n - 1) × TURN others.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

TURN = 4
"""Steps. Of 8 ms each, as on a 60 MB model, changing costs 3 % of them."""

S = TypeVar("S", bound=Hashable)


class Turns(Generic[S]):
    """Remembers who was served, and when."""

    def __init__(self) -> None:
        self._order: list[S] = []
        """The sets in use, the longest unserved first; the last one has the turn."""
        self._left = 0
        """Steps that are left of its turn."""
        self._waited: dict[S, int] = {}
        """For each that is present, the steps of others since it came or had one."""
        self.longest = 0
        """The most steps of others that any set in use has waited for one of its own."""

    def next(self, present: Collection[S]) -> S:
        """The set of the next step, out of those that have sequences; there is one at least."""
        last = [one for one in self._order[-1:] if one in present]
        waiting = [one for one in self._order[:-1] if one in present]
        waiting += [one for one in dict.fromkeys(present) if one not in self._order]
        if not last or self._left == 0:
            waiting += last
            last = [waiting.pop(0)]
            self._left = TURN
        self._left -= 1
        self._order = waiting + last
        self._waited = {one: self._waited.get(one, 0) + 1 for one in waiting}
        self.longest = max([self.longest, *self._waited.values()])
        return last[0]
