"""Settings of single models: custom_models.yaml, edited by command."""

from __future__ import annotations

import os

from swapd.doors.cli.say import FailedError
from swapd.doors.cli.syncing import sync
from swapd.paths import Home, demo_folder, find_home
from swapd.system.lockfile import alone_with


def set_values(name: str, settings: list[str]) -> int:
    """Write settings of a model into custom_models.yaml, and sync. Raises FailedError."""
    wanted: dict[str, str | None] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise FailedError(f"{setting} is no setting: it must be key=value, or key= for none", 2)
        wanted[key.strip()] = value or None
    home = find_home()
    home.folder.mkdir(parents=True, exist_ok=True)
    with alone_with(home.edits):
        _write(home, name, wanted)
        sync(force=False, files=False)
    return 0


def _write(home: Home, name: str, wanted: dict[str, str | None]) -> None:
    """Change custom_models.yaml and say so. Raises FailedError."""
    from swapd.config.errors import ConfigError
    from swapd.config.yaml_edit import EditError
    from swapd.library.overrides import customise
    from swapd.process import memory
    from swapd.system import aio

    try:
        done = customise(
            home.folder,
            os.environ,
            demo_folder(),
            name,
            wanted,
            now=aio.wall(),
            total_memory=memory.total(),
        )
    except (EditError, ConfigError) as error:
        raise FailedError(f"nothing was changed: {error}") from error
    print(f"{home.custom}: models.{done.section} {'changed' if done.written else 'unchanged'}")
