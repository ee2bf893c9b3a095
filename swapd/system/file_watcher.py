"""Watching of files and folders for changes."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import watchfiles

STEP_MS = 500
"""Milliseconds between two looks at the reported changes: one wake-up each, even at rest."""
FOLDER_STEP_MS = 2000
"""Milliseconds between two looks for folders of models, where nothing waits for the result."""
POLL_STEPS = 4
"""Steps between two polls of the files, where the system reports no changes."""
SETTLE_MS = 2000
"""Longest time to wait for a burst of changes to end, in milliseconds."""
CLOSE_TIMEOUT = 1.0
"""Longest time to wait for the thread, in seconds; it needs more only on a stalled file system."""
MAX_LINKS = 40
"""Symbolic links that a path may contain; the kernel follows no more either."""


class _StepEvent:
    """Stop event for `watchfiles.watch`, which also sets the time between its looks.

    `watch` is a generator: its watch exists only after the first `next()`, which returns only
    after a change. But it calls `is_set()` once per step, for the first time when the watch
    exists. So the first call reports the watch as started, and all others wait for the step
    themselves. `watch` itself must not wait (`step=0`).
    """

    def __init__(self, stop: threading.Event, step: int, started: Callable[[], object]) -> None:
        self._stop = stop
        self._seconds = step / 1000
        self._started = started
        self.is_started = False

    def is_set(self) -> bool:
        """Wait for one step. True if the watch has to stop."""
        if not self.is_started:
            self.is_started = True
            self._started()
        return self._stop.wait(self._seconds)


class _Watch:
    """A thread that calls `changed` on the event loop after a relevant change in `folders()`.

    `folders` is called again after each such change: a link may have another target by then.
    """

    def __init__(self, recursive: bool, step: int, changed: Callable[[], object]) -> None:
        self._recursive = recursive
        self._step = step
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._started = Future[None]()
        self._folders = self.folders()
        self._thread = threading.Thread(target=self._run, name="file watch", daemon=True)
        self._thread.start()
        # Returning only now means that no later change is missed, and that errors are raised here.
        self._started.result()

    def folders(self) -> list[str]:
        """Return the existing folders to watch."""
        raise NotImplementedError

    def is_relevant(self, path: str) -> bool:
        """True if a change of this path has to be reported."""
        raise NotImplementedError

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._watch_folders()
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    def _watch_folders(self) -> None:
        """Watch the present folders until they are others, or until `close`."""
        event = _StepEvent(self._stop, self._step, self._on_started)
        try:
            self._follow(event, force_polling=False)
        except (OSError, RuntimeError):
            if event.is_started:
                raise
            # The system limits the number of watches, and other programs may have used them all.
            self._follow(event, force_polling=True)

    def _follow(self, event: _StepEvent, *, force_polling: bool) -> None:
        folders = self._folders
        changes = watchfiles.watch(
            *folders,
            watch_filter=lambda _change, path: self.is_relevant(path),
            debounce=SETTLE_MS,
            step=0,
            stop_event=event,
            rust_timeout=0,
            debug=False,
            force_polling=force_polling,
            poll_delay_ms=self._step * POLL_STEPS,
            recursive=self._recursive,
            ignore_permission_denied=True,
        )
        for _ in changes:
            self._folders = self.folders()
            if self._folders != folders:
                # The next watch reports this change when it has started, so that no change
                # between the two watches is missed.
                return
            self._report()

    def _on_started(self) -> None:
        if self._started.done():
            self._report()
        else:
            self._started.set_result(None)

    def _report(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed)

    def close(self) -> None:
        """Stop watching, and wait for the thread, which ends at once."""
        self._stop.set()
        # Python aborts if it exits while a thread returns from the library's native code.
        self._thread.join(CLOSE_TIMEOUT)


class FileWatch(_Watch):
    """Watch that calls `changed` after one of `files` was written, replaced, removed or relinked.

    The folders of the files are watched, because editors replace a file by renaming another; and
    those of all links on the way to them, because a mounted configuration is replaced by a link.
    """

    def __init__(self, files: list[Path], changed: Callable[[], object]) -> None:
        self._files = files
        self._names: set[str] = set()
        super().__init__(False, STEP_MS, changed)

    def folders(self) -> list[str]:
        self._names = {str(path) for file in self._files for path in _resolution_path(file)}
        parents = {Path(name).parent for name in self._names}
        return sorted(str(folder) for folder in parents if folder.is_dir())

    def is_relevant(self, path: str) -> bool:
        return path in self._names


def _resolution_path(file: Path) -> list[Path]:
    """Return the file as named, all links on the way to its target, and the target."""
    path, steps = file.absolute(), [file.absolute()]
    while len(steps) < MAX_LINKS:
        link = next((p for p in [*reversed(path.parents), path] if p.is_symlink()), None)
        if link is None:
            break
        steps.append(link)
        # The rest of the path, after the link, is relative to the link's target.
        path = Path(os.path.normpath(link.parent / link.readlink() / path.relative_to(link)))
    return [*steps, path]


class FolderWatch(_Watch):
    """Watch that calls `changed` after any change below one of `folders`, which exist."""

    def __init__(self, folders: list[Path], changed: Callable[[], object]) -> None:
        self._roots = list(map(str, folders))
        super().__init__(True, FOLDER_STEP_MS, changed)

    def folders(self) -> list[str]:
        return self._roots

    def is_relevant(self, path: str) -> bool:  # noqa: ARG002
        return True
