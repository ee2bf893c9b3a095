"""Automatic sync: keep config.yaml up to date with the model files and custom_models.yaml.

A sync reads many files and would block the daemon's event loop: it runs in a child process and
writes config.yaml, which the daemon watches anyway.

`python -m swapd.library.auto_sync`: one sync of the data directory, reported as a line of JSON.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from swapd.config.env import folders_to_watch, read_env, sync_settings
from swapd.library.generate import is_generated
from swapd.paths import Paths, demo_directory, find_paths, schema_url
from swapd.system.aio import Tasks, Timer, now, wall
from swapd.system.file_watcher import FileWatch, FolderWatch
from swapd.system.logs import Logs

COMMAND = [sys.executable, "-I", "-m", "swapd.library.auto_sync"]
DEBOUNCE = 0.2
"""Seconds from a change to the sync, since changes come in groups."""
MIN_PAUSE = 5.0
"""Seconds from one sync to the next: a download changes its folder all the time."""


class SyncOutcome(msgspec.Struct):
    """Report of the child process."""

    lines: list[str] = []
    """Changes, for the log; empty when nothing was written."""
    error: str = ""
    settles_in: float = 0.0
    """Seconds after which another sync finds files that are too young now; 0: there are none."""


class AutoSync:
    """Runs a sync when a folder of models, custom_models.yaml or .env changes, and periodically."""

    def __init__(self, paths: Paths, logs: Logs) -> None:
        self._paths = paths
        self._log = logs.own
        self._tasks = Tasks(logs.own)
        self._running = False
        self._again = False
        self._ended = 0.0
        self._timer = Timer(self._sync)
        settings = sync_settings(read_env(paths.folder, os.environ))
        self._interval = settings.sync_interval
        self._watches: list[FileWatch | FolderWatch] = [
            FileWatch([paths.custom, paths.folder / ".env"], self._schedule)
        ]
        if folders := folders_to_watch(settings.stores):
            try:
                self._watches.append(FolderWatch(folders, self._schedule))
            except (OSError, RuntimeError) as error:
                # The system limits the number of watches, and a folder may vanish meanwhile.
                often = f"read every {self._interval:g} s" if self._interval else "not read again"
                self._log.warning("folders of models are not watched but %s: %s", often, error)
        self._set_timer(self._interval)

    def _set_timer(self, seconds: float) -> None:
        self._timer.set(now() + seconds if seconds else None)

    def _schedule(self) -> None:
        self._set_timer(max(DEBOUNCE, self._ended + MIN_PAUSE - now()))

    def _sync(self) -> None:
        """Start a sync now, or after the one in progress."""
        if self._running:
            self._again = True
        else:
            self._running = True
            self._tasks.run(self._run(), "sync")

    async def _run(self) -> None:
        try:
            outcome = await self._run_child()
        finally:
            self._running = False
            self._ended = now()
        if outcome.error:
            self._log.error("sync: %s", outcome.error)
        for line in outcome.lines:
            self._log.info("sync: %s", line)
        if self._again:
            self._again = False
            self._schedule()
        else:
            self._set_timer(outcome.settles_in or self._interval)

    async def _run_child(self) -> SyncOutcome:
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            env={**os.environ, "SWAPD_HOME": str(self._paths.folder)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        try:
            return msgspec.json.decode(out, type=SyncOutcome)
        except msgspec.DecodeError:
            return SyncOutcome(
                error=err.decode("utf-8", "replace").strip()[-2000:] or "the sync was killed"
            )

    async def close(self) -> None:
        """Stop watching. A sync in progress runs to its end."""
        self._timer.set(None)
        for watch in self._watches:
            watch.close()
        await self._tasks.end()


def auto_sync_for(paths: Paths, config: Path, logs: Logs) -> AutoSync | None:
    """Return the automatic sync of a generated configuration; None for any other."""
    generated = config == paths.config and is_generated(config)
    return AutoSync(paths, logs) if generated else None


def run_sync() -> SyncOutcome:
    """Sync the data directory once."""
    # Only the child process needs them: the daemon, which imports this module, stays small.
    from swapd.config.errors import ConfigError
    from swapd.library.sync import sync
    from swapd.process import memory

    paths = find_paths()
    try:
        report = sync(
            paths.folder,
            os.environ,
            demo_directory(),
            now=wall(),
            total_memory=memory.total(),
            schema=schema_url("config"),
        )
    except ConfigError as error:
        return SyncOutcome(error=f"nothing was changed:\n{error}")
    return SyncOutcome(report.lines() if report.written else [], settles_in=report.settles_in)


def main() -> int:
    """Sync and print the outcome as JSON; return 0 unless the sync failed."""
    outcome = run_sync()
    sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
    return 1 if outcome.error else 0


if __name__ == "__main__":
    sys.exit(main())
