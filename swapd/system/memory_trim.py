"""Trim of swapd's own memory: free pages are returned to the kernel after a burst of requests.

After a burst its memory is free, but Python collects cycles of objects only after many more
allocations, and the C library keeps free pages that lie between used ones. Neither is returned
while swapd is idle, so without a trim it would keep the memory of its busiest hour.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
from collections.abc import Callable

import psutil

CHECK_DELAY = 3.0
"""Seconds from the end of a request to the check of the load."""
MIN_GROWTH = 4 * 2**20
"""Bytes of growth since the last trim from which a trim is worthwhile."""
BURST = 32
"""Ended requests from which a trim is worthwhile in any case: their memory may be free but held."""


class MemoryTrimmer:
    """Counter of running requests, which trims memory when at most half of their peak remain."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._running = 0
        self._peak = 0
        self._floor = _resident_bytes()
        """Resident bytes after the last trim."""
        self._malloc_trim = _find_malloc_trim()
        self._handle: asyncio.TimerHandle | None = None

    def enter(self) -> None:
        """Count a request that begins."""
        self._running += 1
        self._peak = max(self._peak, self._running)

    def leave(self) -> None:
        """Count a request that has ended, in whatever way."""
        self._running -= 1
        if self._handle is None:
            loop = asyncio.get_running_loop()
            self._handle = loop.call_later(CHECK_DELAY, self._check)

    def _check(self) -> None:
        self._handle = None
        self.trim()

    def trim(self) -> None:
        """Return free memory to the kernel, if the load has dropped and it is worthwhile."""
        if 2 * self._running > self._peak:
            return
        ended, self._peak = self._peak - self._running, self._running
        before = _resident_bytes()
        if ended < BURST and before < self._floor + MIN_GROWTH:
            return
        # Takes some milliseconds, during which the running requests wait.
        gc.collect()
        if self._malloc_trim is not None:
            self._malloc_trim(0)
        self._floor = _resident_bytes()
        freed = before - self._floor
        self._log.debug("memory returned: %d MB of %d MB", freed >> 20, before >> 20)


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _find_malloc_trim() -> Callable[[int], int] | None:
    """Return `malloc_trim` of the C library; None where it has none."""
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found
