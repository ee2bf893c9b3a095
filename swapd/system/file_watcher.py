"""Watches files for changes."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

STEP_MS = 500
"""How often the library looks at what the system has told it: an unasked wake-up each."""
FOLDER_STEP_MS = 2000
"""The same for folders of models, where nobody waits for the answer."""
LOOK_STEPS = 4
"""Steps from one look of our own to the next, where the system tells nothing."""
SETTLE_MS = 2000
"""Longest time to wait for a burst of changes to end."""
LINKS_MOST = 40
"""Links that the way to a file may have; the kernel follows no more either."""


class _Watch:
    """Calls `changed` on the event loop after something that `concerns` it in `folders`.

    After each such change both are asked for again: a link may point elsewhere by then.
    """

    def __init__(self, recursive: bool, step: int, changed: Callable[[], object]) -> None:
        self._recursive = recursive
        self._step = step
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        # Made here and not in the thread: what changes from now on is noticed.
        self._folders = self.folders()
        self._notify = self._listen()
        threading.Thread(target=self._watch, name="file watch", daemon=True).start()

    def folders(self) -> list[str]:
        """What to watch; all of it exists."""
        raise NotImplementedError

    def concerns(self, path: str) -> bool:
        """Whether a change of this path is one to be told of."""
        raise NotImplementedError

    def _listen(self) -> RustNotify:
        try:
            return RustNotify(self._folders, False, False, 0, self._recursive, True)
        except (OSError, WatchfilesRustInternalError):
            # The system tells so many programs of so many folders, and others may have taken them
            # all: then we look ourselves, less often.
            look = self._step * LOOK_STEPS
            return RustNotify(self._folders, False, True, look, self._recursive, True)

    def _watch(self) -> None:
        while True:
            seen = self._notify.watch(SETTLE_MS, self._step, 0, self._stop)
            if isinstance(seen, str):
                return
            if not any(self.concerns(path) for _, path in seen):
                continue
            folders = self.folders()
            if folders != self._folders:
                self._folders = folders
                self._notify = self._listen()
            # Told after that, so that nothing falls between the old watch and the new.
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._changed)

    def close(self) -> None:
        """Stop watching; the thread ends within one step."""
        self._stop.set()


class FileWatch(_Watch):
    """Calls `changed` after any of `files` was written, replaced or removed, or leads elsewhere.

    The folders of the files are watched, because editors replace a file by renaming another; and
    those of all links on the way to them, because a mounted configuration is replaced by a link.
    """

    def __init__(self, files: list[Path], changed: Callable[[], object]) -> None:
        self._files = files
        self._names: set[str] = set()
        super().__init__(False, STEP_MS, changed)

    def folders(self) -> list[str]:
        self._names = {str(path) for file in self._files for path in _way_to(file)}
        parents = {Path(name).parent for name in self._names}
        return sorted(str(folder) for folder in parents if folder.is_dir())

    def concerns(self, path: str) -> bool:
        return path in self._names


def _way_to(file: Path) -> list[Path]:
    """The file as it is named and as it lies, and all links on the way from one to the other."""
    path, way = file.absolute(), [file.absolute()]
    while len(way) < LINKS_MOST:
        link = next((p for p in [*reversed(path.parents), path] if p.is_symlink()), None)
        if link is None:
            break
        way.append(link)
        # What follows the link in the path follows what it points to.
        path = Path(os.path.normpath(link.parent / link.readlink() / path.relative_to(link)))
    return [*way, path]


class FolderWatch(_Watch):
    """Calls `changed` after anything below any of `folders`, which exist, has changed."""

    def __init__(self, folders: list[Path], changed: Callable[[], object]) -> None:
        self._below = list(map(str, folders))
        super().__init__(True, FOLDER_STEP_MS, changed)

    def folders(self) -> list[str]:
        return self._below

    def concerns(self, path: str) -> bool:  # noqa: ARG002
        return True
