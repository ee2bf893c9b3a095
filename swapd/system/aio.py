"""The one room of time: everything else gets its time from here or from an event.

Tasks that are neither lost nor silent.

Lines from a pipe, as they come.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any


def now() -> float:
    """Seconds of the monotonic clock, the one that event loops use too."""
    return time.monotonic()


def wall() -> float:
    """Seconds since 1970, for what people and protocols read."""
    return time.time()


async def pause(seconds: float) -> None:
    """Let time pass; for what can only be asked again later, such as a foreign worker's health."""
    await asyncio.sleep(seconds)


class Timer:
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


class Tasks:
    """Keeps background tasks alive while they run, and says when one fails."""

    def __init__(self, log: logging.Logger) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._log = log

    def run(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start `work`; its failure is logged with its traceback, its cancellation is not."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._log.error("%s failed", task.get_name(), exc_info=task.exception())

    async def end(self) -> None:
        """Cancel what still runs and wait until it has ended."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


READ_SIZE = 65536


class LineReader:
    """Reads whole lines from a pipe on the event loop, without ever blocking it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fd: int, take: Callable[[bytes], None]
    ) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._take = take
        self._rest = b""
        self._open = True
        loop.add_reader(fd, self._read)

    def _read(self) -> bool:
        """Take what there is; whether there may be more."""
        try:
            chunk = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            chunk = b""
        if not chunk:
            self._close()
            return False
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._rest) > READ_SIZE:
            self._take(self._rest)
            self._rest = b""
        return True

    def finish(self) -> None:
        """Take what is left, a line without its end included, and close."""
        while self._open and self._read():
            pass
        self._close()
        if self._rest:
            self._take(self._rest)
            self._rest = b""

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
