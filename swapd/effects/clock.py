"""The one room of time: everything else gets its time from here or from an event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


def now() -> float:
    """Seconds of the monotonic clock, the one that event loops use too."""
    return time.monotonic()


def wall() -> float:
    """Seconds since 1970, for what people and protocols read."""
    return time.time()


async def pause(seconds: float) -> None:
    """Let time pass; for what can only be asked again later, such as a foreign worker's health."""
    await asyncio.sleep(seconds)


class Alarm:
    """Calls back at one time at most; setting it anew forgets the time before."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None

    def set(self, when: float | None) -> None:
        """Ring at `when` of this clock, or, with None, not at all."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if when is not None:
            loop = asyncio.get_running_loop()
            self._handle = loop.call_later(max(0.0, when - now()), self._ring)
