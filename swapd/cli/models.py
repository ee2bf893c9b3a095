"""Commands about models: their options, and no more.

Workers by hand: load and unload.

Settings of single models: custom_models.yaml, edited by command.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from swapd.cli.client import named, post, require_running
from swapd.cli.options import AnyName, Json, Name, Yes
from swapd.cli.output import FailedError, waiting
from swapd.cli.sync import sync_models
from swapd.paths import Paths, demo_directory, find_paths
from swapd.system.lockfile import exclusive_lock

Wanted = Annotated[
    str, typer.Argument(metavar="FILTER", help="Only names with this in them, in any case.")
]


def list_(wanted: Wanted = "", as_json: Json = False) -> None:
    """List the models there are."""
    from swapd.cli import listing

    raise typer.Exit(listing.list_models(wanted, as_json))


def show(name: Name, as_json: Json = False) -> None:
    """Tell everything about a model, and what would run it."""
    from swapd.cli import listing

    raise typer.Exit(listing.show(name, as_json))


def load(name: Name) -> None:
    """Load a model and wait until it is ready."""

    raise typer.Exit(load_model(name))


def unload(name: AnyName = None) -> None:
    """Unload a model, or all; what is busy finishes first."""

    raise typer.Exit(unload_models(name))


def pull(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="hf:owner/repo[:quant], a URL, or a name of Ollama's."),
    ],
    sha256: Annotated[str, typer.Option(help="Sum that a URL's file must have.")] = "",
    yes: Yes = False,
) -> None:
    """Get a model and sync; goes on where it was broken off."""
    from swapd.cli import pull as module

    raise typer.Exit(module.pull(name, sha256, yes))


def rm(name: Name, yes: Yes = False) -> None:
    """Remove a model from where it lies, and sync."""
    from swapd.cli import pull

    raise typer.Exit(pull.remove(name, yes))


def set_(
    name: Name,
    settings: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE", help="Settings; KEY= takes one out.")
    ],
) -> None:
    """Change settings of a model in custom_models.yaml, and sync."""

    raise typer.Exit(set_values(name, settings))


def load_model(name: str) -> int:
    """Have a model's worker started; return when it is ready."""
    holder = require_running(find_paths())
    with waiting(f"loading {name}"):
        loaded = post(holder, named("/load", name))["loaded"]
    print(f"{loaded} is ready")
    return 0


def unload_models(name: str | None) -> int:
    """Let a model's worker go, or, without a name, all. Raises FailedError."""
    if name is not None and not name.strip():
        raise FailedError(f"{name!r} is no name of a model; to unload all, give none", 2)
    holder = require_running(find_paths())
    with waiting("unloading"):
        unloaded = post(holder, named("/unload", name) if name else "/unload")["unloaded"]
    for model in unloaded:
        print(f"unloaded {model}")
    if not unloaded:
        print(f"{name} is not loaded" if name else "no model is loaded")
    return 0


def set_values(name: str, settings: list[str]) -> int:
    """Write settings of a model into custom_models.yaml, and sync. Raises FailedError."""
    wanted: dict[str, str | None] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise FailedError(f"{setting} is no setting: it must be key=value, or key= for none", 2)
        wanted[key.strip()] = value or None
    home = find_paths()
    home.folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(home.edits):
        _write(home, name, wanted)
        sync_models(force=False, files=False)
    return 0


def _write(home: Paths, name: str, wanted: dict[str, str | None]) -> None:
    """Change custom_models.yaml and say so. Raises FailedError."""
    from swapd.config.errors import ConfigError
    from swapd.config.yaml_edit import EditError
    from swapd.library.overrides import set_overrides
    from swapd.process import memory
    from swapd.system import aio

    try:
        done = set_overrides(
            home.folder,
            os.environ,
            demo_directory(),
            name,
            wanted,
            now=aio.wall(),
            total_memory=memory.total(),
        )
    except (EditError, ConfigError) as error:
        raise FailedError(f"nothing was changed: {error}") from error
    print(f"{home.custom}: models.{done.section} {'changed' if done.written else 'unchanged'}")
