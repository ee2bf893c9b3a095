"""Commands about models: their options, and no more."""

from __future__ import annotations

from typing import Annotated

import typer

from swapd.doors.cli.words import AnyName, Json, Name, Yes

Wanted = Annotated[
    str, typer.Argument(metavar="FILTER", help="Only names with this in them, in any case.")
]


def list_(wanted: Wanted = "", as_json: Json = False) -> None:
    """List the models there are."""
    from swapd.doors.cli import listing

    raise typer.Exit(listing.list_models(wanted, as_json))


def show(name: Name, as_json: Json = False) -> None:
    """Tell everything about a model, and what would run it."""
    from swapd.doors.cli import listing

    raise typer.Exit(listing.show(name, as_json))


def load(name: Name) -> None:
    """Load a model and wait until it is ready."""
    from swapd.doors.cli import loading

    raise typer.Exit(loading.load(name))


def unload(name: AnyName = None) -> None:
    """Unload a model, or all; what is busy finishes first."""
    from swapd.doors.cli import loading

    raise typer.Exit(loading.unload(name))


def sync(
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a config.yaml that sync did not write.")
    ] = False,
) -> None:
    """Find GGUF files and write config.yaml."""
    from swapd.doors.cli import syncing

    syncing.sync(force)


def pull(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="hf:owner/repo[:quant], a URL, or a name of Ollama's."),
    ],
    sha256: Annotated[str, typer.Option(help="Sum that a URL's file must have.")] = "",
    yes: Yes = False,
) -> None:
    """Get a model and sync; goes on where it was broken off."""
    from swapd.doors.cli import pull as module

    raise typer.Exit(module.pull(name, sha256, yes))


def rm(name: Name, yes: Yes = False) -> None:
    """Remove a model from where it lies, and sync."""
    from swapd.doors.cli import remove

    raise typer.Exit(remove.remove(name, yes))


def set_(
    name: Name,
    settings: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE", help="Settings; KEY= takes one out.")
    ],
) -> None:
    """Change settings of a model in custom_models.yaml, and sync."""
    from swapd.doors.cli import custom

    raise typer.Exit(custom.set_values(name, settings))
