"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _names(incomplete: str) -> list[str]:
    from swapd.cli.listing import complete

    return complete(incomplete)


Host = Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 unless configured.")]
Port = Annotated[
    int | None, typer.Option(help="Port to listen on; 5847 unless configured.", min=1, max=65535)
]
Config = Annotated[
    Path | None, typer.Option(help="Configuration to use instead of the home's config.yaml.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Now = Annotated[bool, typer.Option("--now", help="End running requests too, instead of waiting.")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show it anew every second.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A model, as list shows it.", autocompletion=_names),
]
AnyName = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="A model, as list shows it.", autocompletion=_names),
]
