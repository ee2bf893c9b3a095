"""Commands about swapd itself: their options, and no more.

The logs, as they lie on the disk: they are there when swapd is not.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from swapd.cli.config import find, models
from swapd.cli.options import AnyName, Config, Host, Json, Now, Port, Watch
from swapd.cli.output import FailedError
from swapd.paths import find_paths
from swapd.system.logs import log_file


def start(host: Host = "", port: Port = None, config: Config = None) -> None:
    """Start swapd in the background and wait until it answers."""
    from swapd.cli import start_stop

    raise typer.Exit(start_stop.start(host, port or 0, config))


def serve(host: Host = "", port: Port = None, config: Config = None) -> None:
    """Run swapd in the foreground, as service managers want it."""
    from swapd.cli import start_stop

    raise typer.Exit(start_stop.serve(host, port or 0, config))


def stop(now: Now = False) -> None:
    """End swapd and its workers, after what they serve."""
    from swapd.cli import start_stop

    raise typer.Exit(start_stop.stop(now))


def restart(now: Now = False) -> None:
    """Stop swapd and start it again as it was started."""
    from swapd.cli import start_stop

    raise typer.Exit(start_stop.restart(now))


def status(as_json: Json = False) -> None:
    """Tell whether swapd runs and what is loaded.

    Exit status 0: it runs; 3: it does not.
    """
    from swapd.cli import status as module

    raise typer.Exit(module.status(as_json))


def ps(watch: Watch = False, as_json: Json = False) -> None:
    """List the loaded models: what each holds, and how long."""
    from swapd.cli import status as module

    raise typer.Exit(module.ps(watch, as_json))


def stats(watch: Watch = False, as_json: Json = False) -> None:
    """Sum up the loaded models and the machine's memory."""
    from swapd.cli import status as module

    raise typer.Exit(module.stats(watch, as_json))


def logs(
    model: AnyName = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", help="How many to begin with.", min=0)
    ] = 50,
) -> None:
    """Print the log of swapd, or of a model's workers."""

    raise typer.Exit(print_log(model or "", follow, lines))


def doctor(as_json: Json = False) -> None:
    """Tell what is wrong with this installation.

    Exit status 1: something is.
    """
    from swapd.cli import doctor as module

    raise typer.Exit(module.doctor(as_json))


def config_check(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Another configuration.")
    ] = None,
) -> None:
    """Say whether the configuration can be used, and what is wrong with it."""
    from swapd.cli import config

    raise typer.Exit(config.check(file))


def config_path() -> None:
    """Print where config.yaml is."""
    from swapd.cli import config

    raise typer.Exit(config.path())


def config_show() -> None:
    """Print config.yaml."""
    from swapd.cli import config

    raise typer.Exit(config.show())


def _config(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        from swapd.cli import config

        raise typer.Exit(config.show_effective())


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


def print_log(model: str, follow: bool, lines: int) -> int:
    """Print the last lines of swapd's log, or of a model's workers; go on if wanted."""
    home = find_paths()
    name = find(models(home), model).name if model else ""
    path = log_file(home.logs, name)
    if not path.is_file() and not follow:
        said = f"no worker of {name} has said anything" if name else "there is no log"
        raise FailedError(f"{said} yet: there is no {path}")
    if follow:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        # tail knows what to do when the log is rotated away under it.
        os.execvp("tail", ["tail", "-n", str(lines), "-F", str(path)])
    with path.open(encoding="utf-8", errors="replace") as file:
        sys.stdout.writelines(deque(file, lines))
    return 0
