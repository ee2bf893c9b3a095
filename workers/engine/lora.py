"""The LoRA adapters that are loaded. The engine thread's own."""

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
"""Adapter files and their scales, as a request wants them."""


class AdapterCache:
    """Loads adapters at their first use; of those nobody uses, the longest unused goes first."""

    def __init__(self, model: Model, most: int, log: LlamaLog, counters: Counters) -> None:
        """`most`: how many may be loaded at a time."""
        self.most = most
        self._users: list[tuple[Context, Callable[[], list[Adapters]]]] = []
        self._model = model
        self._log = log
        self._counters = counters
        self._loaded: dict[str, LoraAdapter] = {}  # by fingerprint, the longest unused first
        self._known: dict[Path, tuple[tuple[int, int], str]] = {}
        """A file's size and time, and the fingerprint it had then."""

    @property
    def loaded(self) -> int:
        """How many there are."""
        return len(self._loaded)

    def serve(self, context: Context, running: Callable[[], list[Adapters]]) -> None:
        """Adapters are for `context` too: what its `running` requests use is not freed."""
        self._users.append((context, running))

    def prepare(self, wanted: AdapterFiles) -> Adapters | None:
        """Loads what is not loaded yet; None if that must wait until a running request has ended.

        Raises LoadError.
        """
        prints = [self._fingerprint(path) for path, _ in wanted]
        pinned = self._pinned() | set(prints)
        if len(pinned) > self.most:
            return None
        for (path, _), one in zip(wanted, prints, strict=True):
            if one in self._loaded:
                self._loaded[one] = self._loaded.pop(one)
            else:
                while len(self._loaded) >= self.most:
                    self._free(next(other for other in self._loaded if other not in pinned))
                self._load(path, one)
        return tuple(zip(prints, (scale for _, scale in wanted), strict=True))

    def apply(self, context: Context, adapters: Adapters) -> None:
        """Makes them the ones that `context` computes with."""
        if context.adapters != adapters:
            handles = [(self._loaded[one], scale) for one, scale in adapters]
            context.use_adapters(adapters, handles)
            self._counters.adapter_changes += 1

    def discard(self, path: Path) -> None:
        """Frees the adapter at `path` if it is loaded and no running request needs it."""
        known = self._known.pop(path, None)
        if known is not None and known[1] in self._loaded and known[1] not in self._pinned():
            self._free(known[1])

    def _pinned(self) -> set[str]:
        """Fingerprints of those in use."""
        return {one for _, running in self._users for adapters in running() for one, _ in adapters}

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
            told = path.stat()
            version = (told.st_size, told.st_mtime_ns)
            if path not in self._known or self._known[path][0] != version:
                self._known[path] = (version, fingerprint(path))
        except OSError as error:
            raise LoadError(f"{path.name}: {error.strerror}") from error
        return self._known[path][1]
