"""Kept sequences that outlive the process: saved at its end, restored when a prompt wants them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from workers.binding_context import Context
from workers.cache import Adapters, Kept, PrefixCache, Running, common_prefix
from workers.kv_files import DamagedError, KvFiles, Saved, warn
from workers.metrics import Counters

WORTH_SAVING = 32
"""Tokens from which a sequence is written, and which a restore must save beyond what is there."""
ASSUMED_RATE = 200e6
"""Bytes a second that a disk takes, until one was written to."""


class Conversations:
    """The cache's kept sequences on disk. The engine thread's own."""

    def __init__(
        self, files: KvFiles, context: Context, cache: PrefixCache, counters: Counters
    ) -> None:
        self.files = files
        self._context = context
        self._cache = cache
        self._counters = counters
        self._index: list[Saved] | None = None
        self._rate = ASSUMED_RATE

    def fetch(self, wish: Running, admitted: Sequence[Running], growing: int) -> bool:
        """Brings back what `wish` can go on from, if that is more than the cache has; whether.

        `admitted` and what they have pending keep their cells.
        """
        if not wish.reuses or len(wish.tokens) <= WORTH_SAVING or not self.files.usable:
            return False
        _, here = self._cache.find(wish, admitted)
        best, most = None, here + WORTH_SAVING - 1
        for saved in self._saved():
            if saved.adapters != wish.adapters:
                continue
            limit = min(len(saved.tokens), len(wish.tokens) - 1 - wish.unplayed)
            common = common_prefix(saved.tokens, wish.tokens, limit)
            if common > most and (self._context.cuts or common == len(saved.tokens)):
                best, most = saved, common
        if best is None:
            return False
        try:
            return self.restore(best, slot=-1, growing=growing) is not None
        except DamagedError as damage:
            self._lost(best)
            self.files.discard(best.path, str(damage))
            return False

    def restore(self, saved: Saved, *, slot: int, growing: int) -> Kept | None:
        """Makes `saved` a kept sequence; None if there is no room for it.

        Raises DamagedError if it is not what it should be.
        """
        self.files.check(saved)
        count = len(saved.tokens)
        seq_id = self._cache.reserve(count, growing)
        if seq_id is None:
            return None
        began = time.perf_counter()
        loaded = self._context.load_sequence(saved.path, seq_id, count)
        kept = Kept(saved.tokens, seq_id, saved.adapters, slot, saved.path.name)
        if loaded != saved.tokens:
            self._cache.abandon(seq_id)
            raise DamagedError("llama.cpp does not restore it")
        self._cache.fill(kept)
        last = self._context.last_position(seq_id)
        if last != count - 1:
            self._cache.give_up(kept)
            self.refuse(f"after a restore of {count} tokens the last position was {last}")
            return None
        self._counters.restored_tokens += count
        self._counters.restore.observe(time.perf_counter() - began)
        return kept

    def refuse(self, reason: str) -> None:
        """A restore turned out to be of no use with this model."""
        self.files.refuse(reason)
        self._index = []

    def save_all(self, seconds: float) -> int:
        """Writes what is kept and not on disk yet, the latest first; stops in time.

        Returns how many it wrote.
        """
        if not self.files.usable:
            return 0
        until = time.perf_counter() + seconds
        written = 0
        for kept in reversed(self._cache.kept):
            known = {saved.path.name for saved in self._saved()}
            if kept.cached < WORTH_SAVING or kept.file in known:
                continue
            size = self._context.sequence_size(kept.seq_id)
            if size / self._rate > until - time.perf_counter() or not self.files.make_room(size):
                continue
            path = self.files.place(kept.tokens, kept.adapters)
            try:
                self._supersede(self.save(kept.seq_id, path, kept.tokens, kept.adapters))
            except OSError as error:
                warn(f"the KV of {kept.cached} tokens is not kept: {error}")
                break
            kept.file = path.name
            written += 1
        return written

    def save(self, seq_id: int, path: Path, tokens: list[int], adapters: Adapters) -> Saved:
        """Writes one sequence. Raises OSError."""
        began = time.perf_counter()
        saved = self.files.write(
            path,
            tokens,
            adapters,
            lambda part: self._context.save_sequence(part, seq_id, tokens),
        )
        seconds = time.perf_counter() - began
        self._rate = saved.size / max(seconds, 1e-3)
        self._counters.save.observe(seconds)
        return saved

    def _saved(self) -> list[Saved]:
        """What is on disk; looked up once."""
        if self._index is None:
            self._index = self.files.index()
        return self._index

    def _supersede(self, new: Saved) -> None:
        """What is only the beginning of `new` need not stay, if `new` can be cut to it."""
        for old in self._saved()[:]:
            length = len(old.tokens)
            whole = old.adapters == new.adapters and new.tokens[:length] == old.tokens
            if whole and (self._context.cuts or length == len(new.tokens)):
                if old.path != new.path:
                    self.files.remove(old.path)
                self._lost(old)
        self._saved().append(new)

    def _lost(self, saved: Saved) -> None:
        self._index = [other for other in self._saved() if other is not saved]
