"""The prefix cache: sequences in the KV cache, and the prefixes that a prompt can reuse.

A sequence that has ended stays in the cache, and is evicted, least recently used first, when its
cells or its sequence id are needed. A prompt begins after the longest prefix that it shares with
any sequence in the cache: it shares the cells of that prefix, or takes over a cached sequence that
is a prefix of it as a whole. Some memories can't be truncated (recurrent and hybrid models,
sliding windows): there only a whole cached sequence can be continued, and none is shared.

llama.cpp does not report which cells are in use, so they are counted here. Sequences with a common
prefix share its cells, and a shared cell is free when the last of them has gone. So the cells of a
sequence are recorded as runs, each with the number of sequences that use it; sharing a part of a
run splits it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

SHORTEST_PREFIX = 16
"""Tokens from which reuse is worth it: decoding so few costs about as much as one, and every prompt
that begins with the same start-of-text token would share it."""
WORTH_WAITING = 64
"""Tokens of another prompt's prefill from which it is worth waiting to share them."""
GROWTH = 32
"""Cells reserved for each admitted sequence when another one is admitted, so that a preempted
sequence is not admitted again only to be preempted at the next step."""
Adapters = tuple[tuple[str, float], ...]
"""Adapters that a sequence is computed with: fingerprint and scale of each. Keys and values
computed with one set mean nothing under another."""


@dataclass(eq=False)
class _Run:
    length: int
    users: int = 1


class Cells:
    """Cell counts of one cache, by llama.cpp's sequence ids."""

    def __init__(self) -> None:
        self.used = 0
        """Cells in use."""
        self._runs: dict[int, list[_Run]] = {}

    @property
    def seq_ids(self) -> list[int]:
        """Sequence ids that have ever had cells."""
        return list(self._runs)

    def length(self, seq_id: int) -> int:
        """Return the cells of `seq_id`, shared ones included."""
        return sum(run.length for run in self._runs.get(seq_id, ()))

    def used_by(self, seq_ids: Iterable[int]) -> int:
        """Return the cells that would be in use if there were only these sequences."""
        runs = {run for seq_id in seq_ids for run in self._runs.get(seq_id, ())}
        return sum(run.length for run in runs)

    def extend(self, seq_id: int, count: int) -> None:
        """Add `count` cells to `seq_id`."""
        self.used += count
        runs = self._runs.setdefault(seq_id, [])
        if runs and runs[-1].users == 1:
            runs[-1].length += count
        elif count:
            runs.append(_Run(count))

    def share(self, source: int, target: int, length: int) -> None:
        """Share the first `length` cells of `source` with `target`, which has none."""
        self._split(source, length)
        shared = self._first(source, length)
        for run in shared:
            run.users += 1
        self._runs[target] = shared

    def cut(self, seq_id: int, length: int) -> None:
        """Free the cells of `seq_id` after the first `length`."""
        self._split(seq_id, length)
        left = self._first(seq_id, length)
        for run in self._runs.get(seq_id, [])[len(left) :]:
            run.users -= 1
            if run.users == 0:
                self.used -= run.length
        self._runs[seq_id] = left

    def _first(self, seq_id: int, length: int) -> list[_Run]:
        """Return the runs up to `length`, at which one must end."""
        found: list[_Run] = []
        for run in self._runs.get(seq_id, ()):
            if length <= 0:
                break
            found.append(run)
            length -= run.length
        return found

    def _split(self, seq_id: int, at: int) -> None:
        """Make a run of `seq_id` end at `at`, for every sequence that uses it."""
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


class KvMemory(Protocol):
    """The part of a Context that holds the cache."""

    @property
    def can_truncate(self) -> bool:
        """True if the end of a sequence can be removed, and its beginning shared."""

    def share(self, source: int, target: int, length: int) -> None:
        """Share the first `length` positions of `source` with `target`."""

    def cut(self, seq_id: int, length: int) -> bool:
        """Remove the positions from `length` on; return False if that was not possible."""

    def forget(self, seq_id: int) -> None:
        """Free every cell of `seq_id`."""


class HeldCells(Protocol):
    """A sequence in the cache: an active one, or a cached one."""

    tokens: list[int]
    seq_id: int
    adapters: Adapters

    @property
    def cached(self) -> int:
        """Leading tokens of `tokens` that are in the cache."""


@dataclass(eq=False)
class CachedSequence:
    """A sequence that has ended and may be continued."""

    tokens: list[int]
    seq_id: int
    adapters: Adapters
    slot: int
    """Slot that it was in, for saving and restoring by slot."""
    file: str = ""
    """Name of the file on disk with exactly this sequence, or empty."""

    @property
    def cached(self) -> int:
        """Tokens in the cache, which is all of them."""
        return len(self.tokens)


class ActiveSequence(Protocol):
    """A sequence that has a slot, or waits for one."""

    tokens: list[int]
    seq_id: int
    adapters: Adapters
    cached: int
    """Leading tokens of `tokens` that are in the cache."""
    reuses: bool
    """True if it may begin with a cached prefix, and be cached for others."""
    pending_replay: int
    """Tokens before the last that are decoded for their logits too."""


class PrefixCache:
    """The sequence ids and cells of one context, and the sequences that hold them."""

    def __init__(self, memory: KvMemory, capacity: int, seq_ids: int) -> None:
        self._memory = memory
        self.capacity = capacity
        """Cells in all."""
        self.cells = Cells()
        self.entries: list[CachedSequence] = []
        """Cached sequences, the least recently used first."""
        self._free_ids = list(range(seq_ids - 1, -1, -1))

    # Lookup

    def find(
        self, request: ActiveSequence, active: Sequence[ActiveSequence]
    ) -> tuple[HeldCells | None, int]:
        """Return the sequence with the longest prefix for `request`, and the tokens of that prefix.

        (None, 0) if no prefix is worth it. Tokens that are decoded for their logits are not
        reused: the last one. Among equals a cached sequence is preferred, and of these the latest.
        """
        best: HeldCells | None = None
        most = SHORTEST_PREFIX - 1
        if not request.reuses:
            return None, 0
        candidates: list[HeldCells] = []
        candidates.extend(reversed(self.entries))
        if self._memory.can_truncate:
            candidates.extend(active)
        limit = len(request.tokens) - 1 - request.pending_replay
        for held in candidates:
            if held.adapters != request.adapters or held.cached <= most:
                continue
            common = common_prefix(held.tokens, request.tokens, min(held.cached, limit))
            if common > most and (self._memory.can_truncate or common == held.cached):
                best, most = held, common
        return (best, most) if best is not None else (None, 0)

    def is_being_computed(self, request: ActiveSequence, active: Sequence[ActiveSequence]) -> bool:
        """Return True if an active sequence is about to compute a long prefix of `request`.

        Then `request` had better wait and share it: two would take twice as long to read it.
        """
        if not (request.reuses and self._memory.can_truncate):
            return False
        _, reusable = self.find(request, active)
        for held in active:
            if held.adapters != request.adapters or not held.reuses:
                continue
            most = min(len(held.tokens), len(request.tokens) - 1 - request.pending_replay)
            if held.cached < most and most >= reusable + WORTH_WAITING:
                common = common_prefix(held.tokens, request.tokens, most)
                if common >= max(reusable, held.cached) + WORTH_WAITING:
                    return True
        return False

    # Active sequences

    def allocate(
        self, request: ActiveSequence, active: Sequence[ActiveSequence], pending: int
    ) -> bool:
        """Give `request` a sequence id and its reusable prefix; return False if it does not fit.

        `pending` is the number of pending tokens of the `active` sequences. Cached sequences are
        evicted, but only if that helps. A request without active ones is always admitted.
        """
        held, common = self.find(request, active)
        source = held if isinstance(held, CachedSequence) else None
        capacity = self.capacity - pending - GROWTH * (len(active) + 1)
        # Would it fit with every cached sequence evicted? A prefix that comes from a cached
        # sequence takes cells of its own then; one from an active sequence is counted already.
        unshared = len(request.tokens) - (common if source is None else 0)
        active_cells = self.cells.used_by(other.seq_id for other in active)
        if active and active_cells + unshared > capacity:
            return False
        # Evict, the least recently used first, until it fits; the source of the prefix stays.
        new = len(request.tokens) - common
        while self.cells.used + new > capacity and self._evict_oldest(but=source):
            pass
        # Three cases. 1: the source is taken over with its sequence id, and truncated to the
        # prefix if it is longer. A memory that can't be truncated is empty afterwards.
        if source is not None and self._takes_over(source, common, capacity - new):
            self.entries.remove(source)
            request.seq_id = source.seq_id
            request.cached = common if self._cut(source.seq_id, source.cached, common) else 0
            return True
        # 2: a new sequence id that shares the prefix with its source; 3: an empty one.
        request.seq_id = self._new_id(but=source)
        if held is not None:
            self._memory.share(held.seq_id, request.seq_id, common)
            self.cells.share(held.seq_id, request.seq_id, common)
            self._touch(held)
        request.cached = common
        return True

    def extend(self, active: ActiveSequence, count: int) -> None:
        """Count `count` more decoded tokens of an active sequence."""
        active.cached += count
        self.cells.extend(active.seq_id, count)

    def trim(self, active: ActiveSequence, length: int) -> None:
        """Free the cells of an active sequence after its first `length` tokens."""
        self._cut(active.seq_id, active.cached, length)
        active.cached = length

    def free(self, active: ActiveSequence) -> None:
        """Free the cells and the sequence id of an active sequence."""
        self._release(active.seq_id)
        active.seq_id, active.cached = -1, 0

    def ensure_capacity(self, pending: int) -> bool:
        """Evict cached sequences until `pending` more tokens fit; return False if they can't."""
        while self.cells.used + pending > self.capacity:
            if not self._evict_oldest(but=None):
                return False
        return True

    # Cached sequences

    def store(self, active: ActiveSequence, slot: int) -> None:
        """Turn an active sequence that has ended into a cached one.

        Cached sequences that are a prefix of it are evicted, if it can be truncated to them.
        """
        new = CachedSequence(active.tokens[: active.cached], active.seq_id, active.adapters, slot)
        active.seq_id, active.cached = -1, 0
        if self._memory.can_truncate:
            for other in self.entries[:]:
                length = other.cached
                if other.adapters == new.adapters and new.tokens[:length] == other.tokens:
                    self.evict(other)
        self.entries.append(new)

    def evict(self, entry: CachedSequence) -> None:
        """Free a cached sequence."""
        self.entries.remove(entry)
        self._release(entry.seq_id)

    def evict_all(self) -> bool:
        """Free all cached sequences; return True if there were any."""
        found = bool(self.entries)
        while self.entries:
            self.evict(self.entries[0])
        return found

    # Restoring from disk

    def reserve(self, count: int, pending: int) -> int | None:
        """Reserve a sequence id for `count` cells that are to be filled from disk, or return None.

        Cached sequences are evicted only if that helps.
        """
        active = self.cells.used - self._cells_of_entries()
        if active + count + pending > self.capacity or not (self._free_ids or self.entries):
            return None
        self.ensure_capacity(count + pending)
        return self._new_id(but=None)

    def fill(self, entry: CachedSequence) -> None:
        """Add a cached sequence whose reserved sequence id has its cells now."""
        self.cells.extend(entry.seq_id, entry.cached)
        self.entries.append(entry)

    def cancel_reservation(self, seq_id: int) -> None:
        """Free a reserved sequence id."""
        self._release(seq_id)

    def _cells_of_entries(self) -> int:
        """Return the cells that would be free without the cached sequences."""
        ids = {entry.seq_id for entry in self.entries}
        others = self.cells.used_by(seq_id for seq_id in self.cells.seq_ids if seq_id not in ids)
        return self.cells.used - others

    def _takes_over(self, source: CachedSequence, common: int, capacity: int) -> bool:
        """Return True if a cached sequence is continued itself, and False if it is shared.

        It is continued when nothing of it is lost by that, or its cells or its id are needed.
        """
        needed = self.cells.used > capacity or not (self._free_ids or len(self.entries) > 1)
        return common == source.cached or needed

    def _evict_oldest(self, but: CachedSequence | None) -> bool:
        """Evict the least recently used sequence other than `but`; return False without one."""
        for entry in self.entries:
            if entry is not but:
                self.evict(entry)
                return True
        return False

    def _new_id(self, but: CachedSequence | None) -> int:
        if not self._free_ids and not self._evict_oldest(but):
            raise RuntimeError("there are more sequences than sequence ids")
        return self._free_ids.pop()

    def _cut(self, seq_id: int, cached: int, length: int) -> bool:
        """Truncate a sequence to its first `length` tokens, or empty it and return False."""
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
        self._free_ids.append(seq_id)

    def _touch(self, held: HeldCells) -> None:
        if isinstance(held, CachedSequence):
            self.entries.remove(held)
            self.entries.append(held)


def common_prefix(one: Sequence[int], other: Sequence[int], limit: int) -> int:
    """Return the length of the common prefix of two token lists, at most `limit`.

    By halving, as slices compare fast.
    """
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
