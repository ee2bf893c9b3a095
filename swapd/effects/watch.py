"""Watches files for changes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

STEP_MS = 500
"""How often the library looks at what the system has told it: its one unasked wake-up."""
SETTLE_MS = 2000
"""Longest time to wait for a burst of changes to end."""


class FileWatch:
    """Calls `changed` on the event loop after any of `files` was written, replaced or removed.

    The folders of the files are watched, because editors replace a file by renaming another.
    """

    def __init__(self, files: list[Path], changed: Callable[[], None]) -> None:
        self._files = {str(f.resolve()) for f in files} | {str(f.absolute()) for f in files}
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="file watch", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        from watchfiles import watch

        folders = sorted({str(Path(f).parent) for f in self._files})
        batches = watch(
            *folders,
            watch_filter=lambda _, path: path in self._files,
            stop_event=self._stop,
            step=STEP_MS,
            debounce=SETTLE_MS,
            rust_timeout=0,
            recursive=False,
            raise_interrupt=False,
        )
        for _ in batches:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._changed)

    def close(self) -> None:
        """Stop watching; the thread ends within one step."""
        self._stop.set()
