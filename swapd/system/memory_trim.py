"""The memory of swapd itself: given back to the system when a crowd has gone.

What a crowd held is free when it has gone, but Python leaves rings of objects lying until it has
made many more, and the C library keeps the pages that are free between others in use. Neither
comes back by itself when nothing happens any more, so swapd would keep what its busiest hour took.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
from collections.abc import Callable

import psutil

LOOK_AFTER = 3.0
"""Seconds from the end of a request to the look whether it has become quiet."""
WORTH = 4 * 2**20
"""Bytes beyond what was held after the last time, for which it is worth the while."""
CROWD = 32
"""So many that have gone are worth it in any case: what they left may be free and kept."""


class MemoryTrimmer:
    """Counts the requests that are under way; when at most half of them are left, gives back."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._under_way = 0
        self._most = 0
        self._floor = _held()
        """Bytes held after the last time."""
        self._trim = _trim()
        self._handle: asyncio.TimerHandle | None = None

    def enter(self) -> None:
        """A request begins."""
        self._under_way += 1
        self._most = max(self._most, self._under_way)

    def leave(self) -> None:
        """A request has ended, somehow."""
        self._under_way -= 1
        if self._handle is None:
            loop = asyncio.get_running_loop()
            self._handle = loop.call_later(LOOK_AFTER, self._look)

    def _look(self) -> None:
        self._handle = None
        self.look()

    def look(self) -> None:
        """Give back what there is, if it has become quiet."""
        if 2 * self._under_way > self._most:
            return
        gone, self._most = self._most - self._under_way, self._under_way
        held = _held()
        if gone < CROWD and held < self._floor + WORTH:
            return
        # Some milliseconds, in which those who are still here wait.
        gc.collect()
        if self._trim is not None:
            self._trim(0)
        self._floor = _held()
        self._log.debug("memory given back: %d MB of %d", (held - self._floor) >> 20, held >> 20)


def _held() -> int:
    return int(psutil.Process().memory_info().rss)


def _trim() -> Callable[[int], int] | None:
    """The C library's way of giving pages back, where it has one."""
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found
