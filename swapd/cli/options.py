"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _complete_name(incomplete: str) -> list[str]:
    """Return the names of models that a shell may complete to."""
    from swapd.cli.catalog import list_models
    from swapd.cli.output import FailedError
    from swapd.paths import find_paths

    try:
        entries = list_models(find_paths())
    except FailedError:
        # A completion can't show a message; the command itself will.
        return []
    names = [name for e in entries if not e.broken for name in (e.name, *e.aliases)]
    return sorted(name for name in names if name.lower().startswith(incomplete.lower()))


Host = Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 unless configured.")]
Port = Annotated[
    int | None, typer.Option(help="Port to listen on; 5847 unless configured.", min=1, max=65535)
]
Config = Annotated[
    Path | None,
    typer.Option(help="Configuration to use instead of config.yaml in SWAPD_HOME."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Now = Annotated[bool, typer.Option("--now", help="Abort running requests instead of waiting.")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Refresh the output every second.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A model, as list shows it.", autocompletion=_complete_name
    ),
]
OptionalName = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME", help="A model, as list shows it.", autocompletion=_complete_name
    ),
]
