"""Watches files for changes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

from watchfiles._rust_notify import RustNotify

STEP_MS = 500
"""How often the library looks at what the system has told it: an unasked wake-up each."""
FOLDER_STEP_MS = 2000
"""The same for folders of models, where nobody waits for the answer."""
SETTLE_MS = 2000
"""Longest time to wait for a burst of changes to end."""


class _Watch:
    """Calls `changed` on the event loop when `concerns` is true of a path that has changed."""

    def __init__(
        self,
        folders: list[str],
        recursive: bool,
        step: int,
        concerns: Callable[[str], bool],
        changed: Callable[[], None],
    ) -> None:
        self._step = step
        self._concerns = concerns
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        # Made here and not in the thread: what changes from now on is noticed.
        self._notify = RustNotify(folders, False, False, 0, recursive, True)
        threading.Thread(target=self._watch, name="file watch", daemon=True).start()

    def _watch(self) -> None:
        while True:
            seen = self._notify.watch(SETTLE_MS, self._step, 0, self._stop)
            if isinstance(seen, str):
                return
            ours = any(self._concerns(path) for _, path in seen)
            if ours and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._changed)

    def close(self) -> None:
        """Stop watching; the thread ends within one step."""
        self._stop.set()


class FileWatch(_Watch):
    """Calls `changed` after any of `files` was written, replaced or removed.

    The folders of the files are watched, because editors replace a file by renaming another.
    """

    def __init__(self, files: list[Path], changed: Callable[[], None]) -> None:
        names = {str(f.resolve()) for f in files} | {str(f.absolute()) for f in files}
        folders = sorted({str(Path(name).parent) for name in names})
        super().__init__(folders, False, STEP_MS, names.__contains__, changed)


class FolderWatch(_Watch):
    """Calls `changed` after anything below any of `folders`, which exist, has changed."""

    def __init__(self, folders: list[Path], changed: Callable[[], None]) -> None:
        super().__init__(list(map(str, folders)), True, FOLDER_STEP_MS, lambda _: True, changed)
