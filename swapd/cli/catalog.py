"""Models and configuration in use, looked up for commands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from swapd.cli.client import running
from swapd.cli.output import FailedError
from swapd.paths import WORKER_COMMAND, Paths, demo_directory

if TYPE_CHECKING:
    from swapd.config.load import LoadedConfig
    from swapd.library.inventory import InventoryEntry

MAX_LISTED = 12
"""Names in a message."""


def active_config(paths: Paths) -> Path:
    """Return the configuration of the running swapd; without one, that of the data directory."""
    holder = running(paths)
    return Path(holder.config) if holder is not None and holder.config else paths.config


def read_config(paths: Paths, file: Path, environ: Mapping[str, str] = os.environ) -> LoadedConfig:
    """Load a configuration as the daemon does. Raises FailedError."""
    from swapd.config.env import read_env
    from swapd.config.errors import ConfigError
    from swapd.config.load import load
    from swapd.process import memory

    try:
        env = read_env(paths.folder, environ)
        return load(file, env, worker_command=WORKER_COMMAND, total_memory=memory.total())
    except ConfigError as error:
        raise FailedError(f"{file} can't be used:\n{error}") from error


def read_active_config(paths: Paths) -> LoadedConfig:
    """Load the configuration in use, or the one that a sync would generate. Raises FailedError."""
    if (file := active_config(paths)).is_file():
        return read_config(paths, file)
    from swapd.config.errors import ConfigError
    from swapd.config.load import parse
    from swapd.library.sync import make_plan, render
    from swapd.process import memory
    from swapd.system.aio import wall

    total = memory.total()
    try:
        plan = make_plan(paths.folder, os.environ, demo_directory(), now=wall(), total_memory=total)
        text, _ = render(plan, total)
        return parse(
            text, paths.config.name, plan.env, worker_command=WORKER_COMMAND, total_memory=total
        )
    except ConfigError as error:
        raise FailedError(str(error)) from error


def list_models(paths: Paths) -> list[InventoryEntry]:
    """Return all models by name, then the unusable files.

    They are the models that a sync finds or, with a handwritten configuration in use, those of the
    configuration. Raises FailedError when neither can be read.
    """
    from swapd.config.errors import ConfigError
    from swapd.library.generate import is_generated
    from swapd.library.inventory import list_handwritten, list_inventory, mark_served
    from swapd.process import memory
    from swapd.system.aio import wall

    config = active_config(paths)
    if config.is_file() and not is_generated(config):
        return list_handwritten(read_config(paths, config).catalog, config.parent, paths.state)
    try:
        entries = list_inventory(
            paths.folder,
            os.environ,
            demo_directory(),
            now=wall(),
            total_memory=memory.total(),
        )
    except ConfigError as error:
        raise FailedError(f"the models can't be listed:\n{error}") from error
    return mark_served(entries, config) if config.is_file() else entries


def find_model(entries: list[InventoryEntry], name: str) -> InventoryEntry:
    """Return the model of this name. Raises FailedError with the nearest names."""
    from swapd.domain.model_names import AmbiguousName, SpellingIndex

    usable = {entry.name: entry for entry in entries if not entry.broken}
    # An exact name wins, then an alias, then an unusable file, then other spellings.
    exact = usable.get(name) or next((e for e in usable.values() if name in e.aliases), None)
    if exact is not None:
        return exact
    for entry in entries:
        if entry.name == name:
            raise FailedError(f"{name} can't be used: {entry.path} {entry.broken}")
    found = SpellingIndex({e.name: e.aliases for e in usable.values()}).find(name)
    if isinstance(found, AmbiguousName):
        raise FailedError(str(found))
    if found is None:
        raise FailedError(_unknown(name, usable))
    return usable[found]


def _unknown(name: str, usable: dict[str, InventoryEntry]) -> str:
    from swapd.config.errors import did_you_mean

    name = name if name.strip() and name.isprintable() else repr(name)
    if not usable:
        return f"there is no model {name}: none is configured"
    near = did_you_mean(name, [n for e in usable.values() for n in (e.name, *e.aliases)])
    more = f" and {len(usable) - MAX_LISTED} more" if len(usable) > MAX_LISTED else ""
    listed = ", ".join(list(usable)[:MAX_LISTED])
    return f"there is no model {name}" + (near or f"; there are: {listed}{more}")
