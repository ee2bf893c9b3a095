"""The cache of loaded LoRA adapters. Used by the engine thread alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from workers.engine.kv_store import fingerprint
from workers.engine.metrics import Counters
from workers.engine.prefix_cache import Adapters
from workers.llama.context import Context, LoraAdapter
from workers.llama.model import LlamaLog, LoadError, Model

AdapterFiles = tuple[tuple[Path, float], ...]
"""Adapter files of a request, with their scales."""


class AdapterCache:
    """Adapters, loaded at their first use and evicted, least recently used first, while unused."""

    def __init__(self, model: Model, limit: int, log: LlamaLog, counters: Counters) -> None:
        """Load at most `limit` adapters at a time."""
        self.limit = limit
        self._users: list[tuple[Context, Callable[[], list[Adapters]]]] = []
        self._model = model
        self._log = log
        self._counters = counters
        self._loaded: dict[str, LoraAdapter] = {}  # by fingerprint, least recently used first
        self._known: dict[Path, tuple[tuple[int, int], str]] = {}
        """Size and time of each file, and the fingerprint it had then."""

    @property
    def loaded(self) -> int:
        """Adapters in memory."""
        return len(self._loaded)

    def register(self, context: Context, active: Callable[[], list[Adapters]]) -> None:
        """Serve `context` too; the adapters that `active` returns are not evicted."""
        self._users.append((context, active))

    def prepare(self, wanted: AdapterFiles) -> Adapters | None:
        """Load the adapters that are not loaded yet; None if that must wait for a running request.

        Raises LoadError.
        """
        prints = [self._fingerprint(path) for path, _ in wanted]
        pinned = self._pinned() | set(prints)
        if len(pinned) > self.limit:
            return None
        for (path, _), one in zip(wanted, prints, strict=True):
            if one in self._loaded:
                self._loaded[one] = self._loaded.pop(one)
            else:
                while len(self._loaded) >= self.limit:
                    self._free(next(other for other in self._loaded if other not in pinned))
                self._load(path, one)
        return tuple(zip(prints, (scale for _, scale in wanted), strict=True))

    def apply(self, context: Context, adapters: Adapters) -> None:
        """Make `context` compute with these adapters."""
        if context.adapters != adapters:
            handles = [(self._loaded[one], scale) for one, scale in adapters]
            context.use_adapters(adapters, handles)
            self._counters.adapter_changes += 1

    def discard(self, path: Path) -> None:
        """Free the adapter at `path` if it is loaded and no running request needs it."""
        known = self._known.pop(path, None)
        if known is not None and known[1] in self._loaded and known[1] not in self._pinned():
            self._free(known[1])

    def _pinned(self) -> set[str]:
        """Return the fingerprints of the adapters in use."""
        return {one for _, active in self._users for adapters in active() for one, _ in adapters}

    def _load(self, path: Path, one: str) -> None:
        began = time.perf_counter()
        self._loaded[one] = LoraAdapter(self._model, path, self._log)
        self._counters.adapter_load.observe(time.perf_counter() - began)

    def _free(self, one: str) -> None:
        for context, _ in self._users:
            if any(one == used for used, _ in context.adapters):
                context.use_adapters((), [])
        self._loaded.pop(one).free()

    def _fingerprint(self, path: Path) -> str:
        try:
            status = path.stat()
            version = (status.st_size, status.st_mtime_ns)
            if path not in self._known or self._known[path][0] != version:
                self._known[path] = (version, fingerprint(path))
        except OSError as error:
            raise LoadError(f"{path.name}: {error.strerror}") from error
        return self._known[path][1]
