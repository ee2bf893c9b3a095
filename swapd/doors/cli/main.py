"""Commands and their options. What they do stands in the modules beside this one, which are
imported when they are needed: the command line starts quickly."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="swapd",
    help="Run many language models on the machine you have, behind one endpoint.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Host = Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 unless configured.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 5847 unless configured.")]
Config = Annotated[
    Path | None, typer.Option(help="Configuration to use instead of the home's config.yaml.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def start(host: Host = "", port: Port = 0, config: Config = None) -> None:
    """Start swapd in the background and wait until it answers."""
    from swapd.doors.cli import control

    raise typer.Exit(control.start(host, port, config))


@app.command()
def serve(host: Host = "", port: Port = 0, config: Config = None) -> None:
    """Run swapd in the foreground, as service managers want it."""
    from swapd.doors.cli import control

    raise typer.Exit(control.serve(host, port, config))


@app.command()
def stop(
    now: Annotated[
        bool, typer.Option("--now", help="End running requests too, instead of finishing them.")
    ] = False,
) -> None:
    """End swapd: it finishes what it serves, then goes with all its workers."""
    from swapd.doors.cli import control

    raise typer.Exit(control.stop(now))


@app.command()
def status(as_json: Json = False) -> None:
    """Tell whether swapd runs and what is loaded. Exit status 0: it runs; 3: it does not."""
    from swapd.doors.cli import control

    raise typer.Exit(control.status(as_json))


@app.command()
def sync(
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a config.yaml that sync did not write.")
    ] = False,
) -> None:
    """Find GGUF files and write config.yaml."""
    from swapd.doors.cli import control

    raise typer.Exit(control.sync(force))


def main() -> None:
    """The entry of `swapd` and `python -m swapd`."""
    try:
        app(prog_name="swapd")
    except KeyboardInterrupt:
        sys.exit(130)
