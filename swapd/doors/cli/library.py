"""The models there are, by the names that people use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from swapd.doors.cli.client import running
from swapd.doors.cli.say import FailedError
from swapd.paths import Home, demo_folder

if TYPE_CHECKING:
    from swapd.domain.models import Catalog
    from swapd.library.inventory import Entry


def in_use(home: Home) -> Path:
    """The configuration that counts: that of the swapd that runs, else the home's own."""
    holder = running(home)
    return Path(holder.config) if holder is not None and holder.config else home.config


def models(home: Home) -> list[Entry]:
    """All models by name, then what should be a model and can't be used.

    Those that a sync finds; or, where the configuration in use is not a sync's, those that stand in
    it. Raises FailedError when neither can be read.
    """
    from swapd.config.errors import ConfigError
    from swapd.library.generate import is_generated
    from swapd.library.inventory import library, mark_served, written
    from swapd.process import memory
    from swapd.system import aio

    config = in_use(home)
    if config.is_file() and not is_generated(config):
        return written(catalog(home), config.parent, home.state)
    try:
        entries = library(
            home.folder,
            os.environ,
            demo_folder(),
            now=aio.wall(),
            total_memory=memory.total(),
        )
    except ConfigError as error:
        raise FailedError(f"the models can't be listed:\n{error}") from error
    return mark_served(entries, config) if config.is_file() else entries


def catalog(home: Home) -> Catalog:
    """What the configuration in use says. Raises FailedError when it can't be used."""
    from swapd.doors.cli.configuration import read

    return read(home, in_use(home)).catalog


def find(entries: list[Entry], name: str) -> Entry:
    """The model that `name` means. Raises FailedError with the nearest names."""
    from swapd.domain.model_names import Ambiguous, Spellings

    usable = {entry.name: entry for entry in entries if not entry.broken}
    exact = usable.get(name) or next((e for e in usable.values() if name in e.aliases), None)
    if exact is not None:
        return exact
    for entry in entries:
        if entry.name == name:
            raise FailedError(f"{name} can't be used: {entry.path} {entry.broken}")
    found = Spellings({e.name: e.aliases for e in usable.values()}).find(name)
    if isinstance(found, Ambiguous):
        raise FailedError(str(found))
    if found is None:
        raise FailedError(_unknown(name, usable))
    return usable[found]


def _unknown(name: str, usable: dict[str, Entry]) -> str:
    from swapd.config.errors import did_you_mean

    name = name if name.strip() and name.isprintable() else repr(name)
    if not usable:
        return f"there is no model {name}: none is configured"
    near = did_you_mean(name, [n for e in usable.values() for n in (e.name, *e.aliases)])
    more = f" and {len(usable) - 12} more" if len(usable) > 12 else ""
    return f"there is no model {name}" + (
        near or f"; there are: {', '.join(list(usable)[:12])}{more}"
    )
