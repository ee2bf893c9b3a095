"""Commands about swapd itself: their options, and no more."""

from __future__ import annotations

from typing import Annotated

import typer

from swapd.doors.cli.words import AnyName, Config, Host, Json, Now, Port, Watch


def start(host: Host = "", port: Port = 0, config: Config = None) -> None:
    """Start swapd in the background and wait until it answers."""
    from swapd.doors.cli import control

    raise typer.Exit(control.start(host, port, config))


def serve(host: Host = "", port: Port = 0, config: Config = None) -> None:
    """Run swapd in the foreground, as service managers want it."""
    from swapd.doors.cli import control

    raise typer.Exit(control.serve(host, port, config))


def stop(now: Now = False) -> None:
    """End swapd: it finishes what it serves, then goes with all its workers."""
    from swapd.doors.cli import control

    raise typer.Exit(control.stop(now))


def restart(now: Now = False) -> None:
    """Stop swapd and start it again as it was started."""
    from swapd.doors.cli import control

    raise typer.Exit(control.restart(now))


def status(as_json: Json = False) -> None:
    """Tell whether swapd runs and what is loaded. Exit status 0: it runs; 3: it does not."""
    from swapd.doors.cli import status as module

    raise typer.Exit(module.status(as_json))


def ps(watch: Watch = False, as_json: Json = False) -> None:
    """List the loaded models: what each holds, and how long it will."""
    from swapd.doors.cli import status as module

    raise typer.Exit(module.ps(watch, as_json))


def stats(watch: Watch = False, as_json: Json = False) -> None:
    """Sum up the loaded models and the machine's memory."""
    from swapd.doors.cli import status as module

    raise typer.Exit(module.stats(watch, as_json))


def logs(
    model: AnyName = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", help="How many to begin with.", min=0)
    ] = 50,
) -> None:
    """Print the log of swapd, or of a model's workers."""
    from swapd.doors.cli import logs as module

    raise typer.Exit(module.logs(model, follow, lines))
