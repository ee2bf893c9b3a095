"""Commands about API keys: their options, and no more."""

from __future__ import annotations

from typing import Annotated

import typer

from swapd.doors.cli.words import Config, Json

KeyName = Annotated[str, typer.Argument(metavar="NAME", help="A name of your choice.")]


def add(
    name: KeyName,
    models: Annotated[
        list[str] | None,
        typer.Option(help="Models it is good for, between commas; * for any characters."),
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="Good for everything, logs and unloading too.")
    ] = False,
    rate: Annotated[int, typer.Option(help="Requests a minute; 0: no limit.", min=0)] = 0,
    priority: Annotated[
        int, typer.Option(help="Higher goes first, 30 s for each step; added to the model's.")
    ] = 0,
    config: Config = None,
) -> None:
    """Make a key and print it, this once."""
    from swapd.doors.cli import keys

    raise typer.Exit(keys.add(name, models, admin, rate, priority, config))


def list_(config: Config = None, as_json: Json = False) -> None:
    """List the keys and what each is good for."""
    from swapd.doors.cli import keys

    raise typer.Exit(keys.list_keys(config, as_json))


def rm(name: KeyName, config: Config = None) -> None:
    """Take a key out."""
    from swapd.doors.cli import keys

    raise typer.Exit(keys.rm(name, config))


def key() -> typer.Typer:
    """The group of commands about keys."""
    group = typer.Typer(
        help="API keys for the HTTP endpoint: add, list, rm.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("add")(add)
    group.command("list")(list_)
    group.command("rm")(rm)
    return group
