"""What the KV cache remembers: the sequences in it, running or kept, and what a prompt can reuse.

A sequence that has ended stays where it is, and is given up, the longest unused first, when
somebody needs its cells or its sequence id. A prompt begins where the longest prefix ends that
it has in common with any of them: it shares the cells of it, or takes the kept sequence over
when that is a prefix as a whole. Some memories can't be cut (recurrent and hybrid models, sliding
windows): there only a whole kept sequence can be gone on from, and none is shared.

How many cells of the KV cache are taken, by whom. Pure: llama.cpp itself does not tell.

Sequences that begin alike share the cells of what they have in common, and a shared cell is
free when the last of them has gone. So a sequence's cells are kept as runs, each with the number
of sequences that it belongs to; sharing a part of a run splits it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


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


SHORTEST_PREFIX = 16
"""Tokens from which reuse is worth it: decoding so few costs about what one does, and everything
that begins with the same start-of-text token would share it."""
WORTH_WAITING = 64
"""Tokens that another is about to compute from which it is worth waiting for them."""
GROWTH = 32
"""Cells kept free for each admitted sequence when another one is let in, so that one that was
sent back does not come in again only to be sent back at the next step."""
Adapters = tuple[tuple[str, float], ...]
"""The adapters that a sequence is computed with: fingerprint and scale of each. Keys and values
computed with one set mean nothing under another."""


class KvMemory(Protocol):
    """The part of a Context that holds the cache."""

    @property
    def cuts(self) -> bool:
        """Whether the end of a sequence can be taken off, and its beginning shared."""

    def share(self, source: int, target: int, length: int) -> None:
        """`target` gets the first `length` positions of `source` too."""

    def cut(self, seq_id: int, length: int) -> bool:
        """Takes off all from position `length` on; whether that was possible."""

    def forget(self, seq_id: int) -> None:
        """Frees every cell of `seq_id`."""


class HeldCells(Protocol):
    """A sequence in the cache: a running one, or a kept one."""

    tokens: list[int]
    seq_id: int
    adapters: Adapters

    @property
    def cached(self) -> int:
        """How many of `tokens` are in the cache, from the first on."""


@dataclass(eq=False)
class CachedSequence:
    """A sequence that has ended and may be gone on from."""

    tokens: list[int]
    seq_id: int
    adapters: Adapters
    slot: int
    """The slot it was in, for those who save and restore by slot."""
    file: str = ""
    """The name under which exactly this is on disk; empty if it is not."""

    @property
    def cached(self) -> int:
        """All of it."""
        return len(self.tokens)


class ActiveSequence(Protocol):
    """A sequence that has a slot, or wants one."""

    tokens: list[int]
    seq_id: int
    adapters: Adapters
    cached: int
    """How many of `tokens` are in the cache, from the first on."""
    reuses: bool
    """Whether it may begin with what others computed, and be kept for others."""
    unplayed: int
    """So many tokens before the last are decoded for their logits too."""


class PrefixCache:
    """The books of one context: who has which sequence id, and how many cells."""

    def __init__(self, memory: KvMemory, capacity: int, seq_ids: int) -> None:
        self._memory = memory
        self.capacity = capacity
        self.cells = Cells()
        self.kept: list[CachedSequence] = []
        """The longest unused first."""
        self._free = list(range(seq_ids - 1, -1, -1))

    def find(
        self, wish: ActiveSequence, running: Sequence[ActiveSequence]
    ) -> tuple[HeldCells | None, int]:
        """Whose beginning `wish` can reuse, and how many tokens; (None, 0) if it is not worth it.

        What is decoded for its logits is left out: the last token. Of equals a kept one is
        preferred, and of these the latest.
        """
        best: HeldCells | None = None
        most = SHORTEST_PREFIX - 1
        if not wish.reuses:
            return None, 0
        candidates: list[HeldCells] = []
        candidates.extend(reversed(self.kept))
        if self._memory.cuts:
            candidates.extend(running)
        limit = len(wish.tokens) - 1 - wish.unplayed
        for held in candidates:
            if held.adapters != wish.adapters or held.cached <= most:
                continue
            common = common_prefix(held.tokens, wish.tokens, min(held.cached, limit))
            if common > most and (self._memory.cuts or common == held.cached):
                best, most = held, common
        return (best, most) if best is not None else (None, 0)

    def is_being_read(self, wish: ActiveSequence, running: Sequence[ActiveSequence]) -> bool:
        """Whether one of `running` is computing much of what `wish` begins with, right now.

        Then `wish` had better wait and share it: two would take twice as long to read it.
        """
        if not (wish.reuses and self._memory.cuts):
            return False
        _, here = self.find(wish, running)
        for held in running:
            if held.adapters != wish.adapters or not held.reuses:
                continue
            most = min(len(held.tokens), len(wish.tokens) - 1 - wish.unplayed)
            if held.cached < most and most >= here + WORTH_WAITING:
                common = common_prefix(held.tokens, wish.tokens, most)
                if common >= max(here, held.cached) + WORTH_WAITING:
                    return True
        return False

    def claim(self, wish: ActiveSequence, admitted: Sequence[ActiveSequence], growing: int) -> bool:
        """Gives `wish` a sequence id and what it can reuse, if there is room beside `admitted`.

        `growing` are the tokens that the admitted have pending. Kept sequences are given up
        for it, but only if that helps. A lone sequence always comes in.
        """
        held, common = self.find(wish, admitted)
        kept = held if isinstance(held, CachedSequence) else None
        room = self.capacity - growing - GROWTH * (len(admitted) + 1)
        unshared = len(wish.tokens) - (common if kept is None else 0)
        taken = self.cells.used_by(other.seq_id for other in admitted)
        if admitted and taken + unshared > room:
            return False
        while self.cells.used + len(wish.tokens) - common > room and self._give_up(but=kept):
            pass
        if kept is not None and self._taken_over(kept, common, room + common - len(wish.tokens)):
            self.kept.remove(kept)
            wish.seq_id = kept.seq_id
            common = common if self._cut(kept.seq_id, kept.cached, common) else 0
        else:
            wish.seq_id = self._new_id(but=kept)
            if held is not None:
                self._memory.share(held.seq_id, wish.seq_id, common)
                self.cells.share(held.seq_id, wish.seq_id, common)
                self._touch(held)
        wish.cached = common
        return True

    def extend(self, held: ActiveSequence, count: int) -> None:
        """`count` more tokens of it were decoded."""
        held.cached += count
        self.cells.extend(held.seq_id, count)

    def trim(self, held: ActiveSequence, length: int) -> None:
        """The running `held` keeps its first `length` tokens in the cache."""
        self._cut(held.seq_id, held.cached, length)
        held.cached = length

    def keep(self, held: ActiveSequence, slot: int) -> None:
        """`held` has ended: it stays for whoever goes on from it."""
        kept = CachedSequence(held.tokens[: held.cached], held.seq_id, held.adapters, slot)
        held.seq_id, held.cached = -1, 0
        self.add(kept)

    def add(self, kept: CachedSequence) -> None:
        """Keeps it as the one last used; what is only the beginning of it is given up."""
        if self._memory.cuts:
            for other in self.kept[:]:
                length = other.cached
                if other.adapters == kept.adapters and kept.tokens[:length] == other.tokens:
                    self.give_up(other)
        self.kept.append(kept)

    def drop(self, held: ActiveSequence) -> None:
        """Frees what `held`, which is not kept, has in the cache, and its sequence id."""
        self._release(held.seq_id)
        held.seq_id, held.cached = -1, 0

    def make_room(self, growing: int) -> bool:
        """Whether `growing` tokens fit; kept sequences are given up for it."""
        while self.cells.used + growing > self.capacity:
            if not self._give_up(but=None):
                return False
        return True

    def give_up(self, kept: CachedSequence) -> None:
        """Frees a kept sequence."""
        self.kept.remove(kept)
        self._release(kept.seq_id)

    def give_up_all(self) -> bool:
        """Frees all that is kept; whether there was any."""
        there_were = bool(self.kept)
        while self.kept:
            self.give_up(self.kept[0])
        return there_were

    def reserve(self, count: int, growing: int) -> int | None:
        """A sequence id for `count` cells that are to be filled from elsewhere.

        None if they are not to be had; kept sequences are given up only if that helps.
        """
        running = self.cells.used - self._cells_of_kept()
        if running + count + growing > self.capacity or not (self._free or self.kept):
            return None
        self.make_room(count + growing)
        return self._new_id(but=None)

    def fill(self, kept: CachedSequence) -> None:
        """The sequence id that was reserved has the cells of `kept` now, which may be used."""
        self.cells.extend(kept.seq_id, kept.cached)
        self.kept.append(kept)

    def abandon(self, seq_id: int) -> None:
        """The sequence id that was reserved is not needed after all."""
        self._release(seq_id)

    def _cells_of_kept(self) -> int:
        """Cells that would be free without the kept ones."""
        ids = {kept.seq_id for kept in self.kept}
        others = self.cells.used_by(seq_id for seq_id in self.cells.seq_ids if seq_id not in ids)
        return self.cells.used - others

    def _taken_over(self, kept: CachedSequence, common: int, room: int) -> bool:
        """Whether a kept sequence is gone on from itself, instead of being shared.

        So it is when nothing of it is lost by that, and when its cells or its id are needed.
        """
        needed = self.cells.used > room or not (self._free or len(self.kept) > 1)
        return common == kept.cached or needed

    def _give_up(self, but: CachedSequence | None) -> bool:
        """Frees the longest unused; whether there was one beside `but`."""
        for kept in self.kept:
            if kept is not but:
                self.give_up(kept)
                return True
        return False

    def _new_id(self, but: CachedSequence | None) -> int:
        if not self._free and not self._give_up(but):
            raise RuntimeError("there are more sequences than sequence ids")
        return self._free.pop()

    def _cut(self, seq_id: int, cached: int, length: int) -> bool:
        """Whether the sequence has its first `length` tokens now; else it has none."""
        if length == cached:
            return True
        if self._memory.cut(seq_id, length):
            self.cells.cut(seq_id, length)
            return True
        self._memory.forget(seq_id)
        self.cells.cut(seq_id, 0)
        return False

    def _release(self, seq_id: int) -> None:
        self._memory.forget(seq_id)
        self.cells.cut(seq_id, 0)
        self._free.append(seq_id)

    def _touch(self, held: HeldCells) -> None:
        if isinstance(held, CachedSequence):
            self.kept.remove(held)
            self.kept.append(held)


def common_prefix(one: Sequence[int], other: Sequence[int], limit: int) -> int:
    """How many tokens both begin with, `limit` at most; by halving, as slices compare fast."""
    if one[:limit] == other[:limit]:
        return limit
    same, differs = 0, limit
    while differs - same > 1:
        middle = (same + differs) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            differs = middle
    return same
