"""Commands about swapd itself: their options, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swapd.doors.cli.words import AnyName, Config, Host, Json, Now, Port, Watch


def start(host: Host = "", port: Port = None, config: Config = None) -> None:
    """Start swapd in the background and wait until it answers."""
    from swapd.doors.cli import control

    raise typer.Exit(control.start(host, port or 0, config))


def serve(host: Host = "", port: Port = None, config: Config = None) -> None:
    """Run swapd in the foreground, as service managers want it."""
    from swapd.doors.cli import control

    raise typer.Exit(control.serve(host, port or 0, config))


def stop(now: Now = False) -> None:
    """End swapd and its workers, after what they serve."""
    from swapd.doors.cli import control

    raise typer.Exit(control.stop(now))


def restart(now: Now = False) -> None:
    """Stop swapd and start it again as it was started."""
    from swapd.doors.cli import control

    raise typer.Exit(control.restart(now))


def status(as_json: Json = False) -> None:
    """Tell whether swapd runs and what is loaded.

    Exit status 0: it runs; 3: it does not.
    """
    from swapd.doors.cli import status as module

    raise typer.Exit(module.status(as_json))


def ps(watch: Watch = False, as_json: Json = False) -> None:
    """List the loaded models: what each holds, and how long."""
    from swapd.doors.cli import status as module

    raise typer.Exit(module.ps(watch, as_json))


def stats(watch: Watch = False, as_json: Json = False) -> None:
    """Sum up the loaded models and the machine's memory."""
    from swapd.doors.cli import status as module

    raise typer.Exit(module.stats(watch, as_json))


def logs(
    model: AnyName = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", help="How many to begin with.", min=0)
    ] = 50,
) -> None:
    """Print the log of swapd, or of a model's workers."""
    from swapd.doors.cli import logs as module

    raise typer.Exit(module.logs(model or "", follow, lines))


def doctor(as_json: Json = False) -> None:
    """Tell what is wrong with this installation.

    Exit status 1: something is.
    """
    from swapd.doors.cli import doctor as module

    raise typer.Exit(module.doctor(as_json))


def config_check(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Another configuration.")
    ] = None,
) -> None:
    """Say whether the configuration can be used, and what is wrong with it."""
    from swapd.doors.cli import configuration

    raise typer.Exit(configuration.check(file))


def config_path() -> None:
    """Print where config.yaml is."""
    from swapd.doors.cli import configuration

    raise typer.Exit(configuration.path())


def config_show() -> None:
    """Print config.yaml."""
    from swapd.doors.cli import configuration

    raise typer.Exit(configuration.show())


def _config(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        from swapd.doors.cli import terms

        raise typer.Exit(terms.terms())


def config() -> typer.Typer:
    """The group of commands about the configuration; without one of them, what counts."""
    group = typer.Typer(
        help="Check and show the configuration, and what counts in the end.",
        invoke_without_command=True,
        rich_markup_mode=None,
    )
    group.callback()(_config)
    group.command("check")(config_check)
    group.command("path")(config_path)
    group.command("show")(config_show)
    return group
