"""The models there are, by the names that people use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from swapd.doors.cli.say import FailedError
from swapd.home import Home, demo_folder

if TYPE_CHECKING:
    from swapd.config.library import Entry
    from swapd.words.catalog import Catalog, ModelSpec

WRITTEN = "config.yaml"
"""The source of a model in a configuration that somebody wrote by hand."""


def models(home: Home) -> list[Entry]:
    """All models by name, then what should be a model and can't be used.

    Those that a sync finds; or, where the configuration is not a sync's, those that stand in it.
    Raises FailedError when neither can be read.
    """
    from swapd.config.header import MARK
    from swapd.config.library import library
    from swapd.config.problems import ConfigError
    from swapd.effects import clock, memory

    if home.config.is_file():
        with home.config.open("rb") as file:
            if not file.read(len(MARK)).startswith(MARK.encode()):
                return [_entry(spec) for _, spec in sorted(catalog(home).models.items())]
    try:
        return library(
            home.folder,
            os.environ,
            demo_folder(),
            now=clock.wall(),
            total_memory=memory.total(),
        )
    except ConfigError as error:
        raise FailedError(f"the models can't be listed:\n{error}") from error


def catalog(home: Home) -> Catalog:
    """What config.yaml says, as swapd reads it. Raises FailedError when it can't be used."""
    from swapd.doors.cli.configuration import read

    return read(home, home.config).catalog


def find(entries: list[Entry], name: str) -> Entry:
    """The model that `name` means. Raises FailedError with the nearest names."""
    from swapd.config.resolve import Ambiguous, Spellings

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
    from swapd.config.problems import did_you_mean

    if not usable:
        return f"there is no model {name}: none is configured"
    near = did_you_mean(name, [n for e in usable.values() for n in (e.name, *e.aliases)])
    more = f" and {len(usable) - 12} more" if len(usable) > 12 else ""
    return f"there is no model {name}" + (
        near or f"; there are: {', '.join(list(usable)[:12])}{more}"
    )


def _entry(spec: ModelSpec) -> Entry:
    """A model of a configuration written by hand, as far as it tells."""
    import shlex
    from pathlib import Path

    from swapd.config.library import Entry
    from swapd.config.specs import model_file

    file = model_file(spec)
    return Entry(
        spec.name,
        aliases=spec.aliases,
        source=WRITTEN,
        path=Path(file) if file else None,
        size=spec.need_bytes if file else 0,
        need=spec.need_bytes,
        context=spec.context,
        title=spec.title,
        command=shlex.join(spec.argv),
    )
