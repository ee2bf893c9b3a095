"""Watches files for changes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

from watchfiles._rust_notify import RustNotify

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
        folders = sorted({str(Path(f).parent) for f in self._files})
        # Made here and not in the thread: what changes from now on is noticed.
        self._notify = RustNotify(folders, False, False, 0, False, False)
        threading.Thread(target=self._watch, name="file watch", daemon=True).start()

    def _watch(self) -> None:
        while True:
            seen = self._notify.watch(SETTLE_MS, STEP_MS, 0, self._stop)
            if isinstance(seen, str):
                return
            ours = any(path in self._files for _, path in seen)
            if ours and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._changed)

    def close(self) -> None:
        """Stop watching; the thread ends within one step."""
        self._stop.set()
