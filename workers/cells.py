"""How many cells of the KV cache are taken, by whom. Pure: llama.cpp itself does not tell.

Sequences that begin alike share the cells of what they have in common, and a shared cell is
free when the last of them has gone. So a sequence's cells are kept as runs, each with the number
of sequences that it belongs to; sharing a part of a run splits it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(eq=False)
class _Run:
    length: int
    users: int = 1


class Cells:
    """The books of one cache. A sequence is named by its llama.cpp sequence id."""

    def __init__(self) -> None:
        self.used = 0
        """Cells taken by anybody."""
        self._runs: dict[int, list[_Run]] = {}

    @property
    def seq_ids(self) -> list[int]:
        """Everybody who has ever had any."""
        return list(self._runs)

    def length(self, seq_id: int) -> int:
        """Cells that `seq_id` has, shared ones included."""
        return sum(run.length for run in self._runs.get(seq_id, ()))

    def used_by(self, seq_ids: Iterable[int]) -> int:
        """Cells that would be taken if there were only these."""
        runs = {run for seq_id in seq_ids for run in self._runs.get(seq_id, ())}
        return sum(run.length for run in runs)

    def extend(self, seq_id: int, count: int) -> None:
        """`seq_id` takes `count` more."""
        self.used += count
        runs = self._runs.setdefault(seq_id, [])
        if runs and runs[-1].users == 1:
            runs[-1].length += count
        elif count:
            runs.append(_Run(count))

    def share(self, source: int, target: int, length: int) -> None:
        """`target`, which has none, gets the first `length` cells of `source` too."""
        self._split(source, length)
        shared = self._first(source, length)
        for run in shared:
            run.users += 1
        self._runs[target] = shared

    def cut(self, seq_id: int, length: int) -> None:
        """`seq_id` keeps its first `length` cells."""
        self._split(seq_id, length)
        kept = self._first(seq_id, length)
        for run in self._runs.get(seq_id, [])[len(kept) :]:
            run.users -= 1
            if run.users == 0:
                self.used -= run.length
        self._runs[seq_id] = kept

    def _first(self, seq_id: int, length: int) -> list[_Run]:
        """The runs up to `length`, at which one must end."""
        found: list[_Run] = []
        for run in self._runs.get(seq_id, ()):
            if length <= 0:
                break
            found.append(run)
            length -= run.length
        return found

    def _split(self, seq_id: int, at: int) -> None:
        """Makes a run of `seq_id` end at `at`, for all whose run it is."""
        for run in self._runs.get(seq_id, ()):
            if at <= 0:
                return
            if run.length > at:
                rest = _Run(run.length - at, run.users)
                run.length = at
                for runs in self._runs.values():
                    if run in runs:
                        runs.insert(runs.index(run) + 1, rest)
                return
            at -= run.length
