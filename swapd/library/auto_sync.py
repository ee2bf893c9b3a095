"""Keeps config.yaml in step with the models there are and with custom_models.yaml.

A sync reads many files and is no work for the daemon: it runs in a process of its own and writes
config.yaml, which the daemon watches anyway.

`python -m swapd.library.auto_sync`: one sync of the home, told as a line of JSON.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from swapd.config.env import folders_to_watch, read_env, sync_settings
from swapd.library.generate import is_generated
from swapd.paths import Paths
from swapd.system.aio import Tasks, Timer, now
from swapd.system.file_watcher import FileWatch, FolderWatch
from swapd.system.logs import Logs

COMMAND = [sys.executable, "-I", "-m", "swapd.library.auto_sync"]
SOON = 0.2
"""Seconds from a change to the sync: changes come in company."""


GAP = 5.0
"""Seconds from one sync to the next: a download changes its folder all the time."""


class SyncOutcome(msgspec.Struct):
    """What the process that syncs says at its end."""

    lines: list[str] = []
    error: str = ""
    settles_in: float = 0.0


class AutoSync:
    """Syncs when a folder of models, custom_models.yaml or .env changes, and every so often."""

    def __init__(self, home: Paths, logs: Logs) -> None:
        self._home = home
        self._log = logs.own
        self._tasks = Tasks(logs.own)
        self._running = False
        self._again = False
        self._ended = 0.0
        self._alarm = Timer(self._sync)
        settings = sync_settings(read_env(home.folder, os.environ))
        self._interval = settings.sync_interval
        self._watches: list[FileWatch | FolderWatch] = [
            FileWatch([home.custom, home.folder / ".env"], self._soon)
        ]
        if folders := folders_to_watch(settings.stores):
            try:
                self._watches.append(FolderWatch(folders, self._soon))
            except (OSError, RuntimeError) as error:
                # The system watches only so many folders, and one may go at this very moment.
                often = (
                    f"looked at every {self._interval:g} s" if self._interval else "not looked at"
                )
                self._log.warning("folders of models are not watched but %s: %s", often, error)
        self._set_alarm(self._interval)

    def _set_alarm(self, seconds: float) -> None:
        self._alarm.set(now() + seconds if seconds else None)

    def _soon(self) -> None:
        self._set_alarm(max(SOON, self._ended + GAP - now()))

    def _sync(self) -> None:
        """Sync now, or, while one is under way, right after it."""
        if self._running:
            self._again = True
        else:
            self._running = True
            self._tasks.run(self._run(), "sync")

    async def _run(self) -> None:
        try:
            told = await self._told()
        finally:
            self._running = False
            self._ended = now()
        if told.error:
            self._log.error("sync: %s", told.error)
        for line in told.lines:
            self._log.info("sync: %s", line)
        if self._again:
            self._again = False
            self._soon()
        else:
            self._set_alarm(told.settles_in or self._interval)

    async def _told(self) -> SyncOutcome:
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            env={**os.environ, "SWAPD_HOME": str(self._home.folder)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        try:
            return msgspec.json.decode(out, type=SyncOutcome)
        except msgspec.DecodeError:
            return SyncOutcome(
                error=err.decode("utf-8", "replace").strip()[-2000:] or "it was ended"
            )

    async def close(self) -> None:
        """Stop watching; a sync that is under way is left to itself."""
        self._alarm.set(None)
        for watch in self._watches:
            watch.close()
        await self._tasks.end()


def auto_sync_for(home: Paths, config: Path, logs: Logs) -> AutoSync | None:
    """The resync of a home whose configuration is the one that sync writes; else None."""
    own = config == home.config and is_generated(config)
    return AutoSync(home, logs) if own else None


def main() -> int:
    """Sync; print `{"lines", "error", "settles_in"}`; 0 unless nothing could be done."""
    from swapd.cli.output import FailedError
    from swapd.cli.sync import sync_models

    lines: list[str] = []
    settles_in, error = 0.0, ""
    try:
        report = sync_models(force=False, say=lines.append)
        settles_in = report.settles_in
        lines = lines if report.written else []
    except FailedError as failed:
        lines, error = [], str(failed)
    told = {"lines": lines, "error": error, "settles_in": settles_in}
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main())
