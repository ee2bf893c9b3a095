"""Helpers for asyncio: clock, timer, background tasks, reader of lines from a pipe.

The only module that reads the clock: all other code gets the time from here or from an event.
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
    """Return the monotonic clock in seconds, the same clock as that of event loops."""
    return time.monotonic()


def wall() -> float:
    """Return the seconds since 1970, for texts and protocols."""
    return time.time()


async def pause(seconds: float) -> None:
    """Sleep; for conditions that can only be polled, such as an external worker's health."""
    await asyncio.sleep(seconds)


class Timer:
    """Timer with one callback and at most one time; a new time replaces the earlier one."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    def set(self, when: float | None) -> None:
        """Call back at `when` of the monotonic clock; with None, cancel the timer."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if when is not None:
            loop = asyncio.get_running_loop()
            self._handle = loop.call_later(max(0.0, when - now()), self._callback)


class Tasks:
    """Background tasks: referenced while they run, failures logged."""

    def __init__(self, log: logging.Logger) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._log = log

    def run(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start `work`; a failure is logged with its traceback, a cancellation is not."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._log.error("%s failed", task.get_name(), exc_info=task.exception())

    async def end(self) -> None:
        """Cancel the running tasks and wait until they have ended."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


READ_SIZE = 65536
"""Bytes read at once; a longer line is passed on in parts."""


class LineReader:
    """Non-blocking reader of whole lines from a pipe, on the event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fd: int, on_line: Callable[[bytes], None]
    ) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._on_line = on_line
        self._rest = b""
        self._open = True
        loop.add_reader(fd, self._read)

    def _read(self) -> bool:
        """Read the available bytes; return True if there may be more."""
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
            self._on_line(line)
        if len(self._rest) > READ_SIZE:
            self._on_line(self._rest)
            self._rest = b""
        return True

    def finish(self) -> None:
        """Read the remaining lines, the last one also without a line end, and close."""
        while self._open and self._read():
            pass
        self._close()
        if self._rest:
            self._on_line(self._rest)
            self._rest = b""

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
