"""A model's own way of ending its worker: a command, which lasts no longer than the worker."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable

from swapd.domain.models import ModelSpec
from swapd.system.aio import LineReader
from swapd.effects.spawn import Place, spawn


class StopCommand:
    """Runs `argv`; calls `failed` if it ends with another status than 0 before `end` is called.

    Raises OSError when it can't be run. How long the worker may take, and with it the command,
    is bounded by the model's `stop_grace`: then the worker is killed.
    """

    def __init__(
        self,
        argv: tuple[str, ...],
        place: Place,
        spec: ModelSpec,
        output: logging.Logger,
        failed: Callable[[], None],
    ) -> None:
        self._output = output
        self._failed = failed
        self._over = False
        self._place = place
        self._loop = asyncio.get_running_loop()
        spawned = spawn(argv, place, dict(spec.env), own=False)
        self._process = spawned.process
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._lines = LineReader(self._loop, spawned.lines, self._printed)
        threading.Thread(target=self._wait, name="wait for cmdStop", daemon=True).start()

    def end(self) -> None:
        """The worker has ended: so does this."""
        if self._over:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._output.debug("swapd: cmdStop had ended")
        self._finish()

    def _wait(self) -> None:
        """In a thread of its own: sleep until the process has ended, then say so."""
        try:
            if hasattr(os, "waitid"):
                # Without reaping, so that its number stays its own until `_ended`.
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            else:
                self._process.wait()
        except ChildProcessError:
            return  # `end` was quicker.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ended)

    def _printed(self, line: bytes) -> None:
        if text := line.decode("utf-8", "replace").rstrip():
            self._output.info("cmdStop: %s", text)

    def _ended(self) -> None:
        if self._over:
            return
        self._finish()
        if self._process.returncode != 0:
            self._output.warning(
                "swapd: cmdStop ended with status %d; sending SIGTERM", self._process.returncode
            )
            self._failed()

    def _finish(self) -> None:
        self._over = True
        self._process.wait()
        self._place.guardian.forget(self._process.pid)
        self._lines.finish()
