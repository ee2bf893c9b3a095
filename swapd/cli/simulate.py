"""`simulate`: options of the simulation; `swapd.simulation` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def simulate(  # noqa: PLR0913, PLR0917  each is an option of the simulation
    trace: Annotated[
        list[Path] | None,
        typer.Option(
            help="CSV: time, model, prompt_tokens, output_tokens, tenant.", metavar="FILE"
        ),
    ] = None,
    made: Annotated[
        str,
        typer.Option(help="Synthetic traces, separated by commas; default all.", metavar="NAMES"),
    ] = "",
    policies: Annotated[
        str, typer.Option(help="Policies to compare, separated by commas.", metavar="NAMES")
    ] = "",
    memory: Annotated[
        float, typer.Option(help="Memory for models.", metavar="GIB", min=0.1)
    ] = 64.0,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A model's size for --trace: NAME=GIB[@GIB_PER_SECOND].", metavar="MODEL"
        ),
    ] = None,
    hours: Annotated[
        float, typer.Option(help="Length of synthetic traces.", metavar="HOURS", min=0.01)
    ] = 24.0,
    seed: Annotated[int, typer.Option(help="Seed of synthetic traces.", metavar="NUMBER")] = 1,
    slots: Annotated[
        int, typer.Option(help="Concurrent requests per model.", metavar="NUMBER", min=1)
    ] = 4,
    ttl: Annotated[
        float, typer.Option(help="Time to live, for ttl and lru-ttl.", metavar="SECONDS")
    ] = 1800.0,
    max_wait: Annotated[
        float, typer.Option(help="Longest time slice of a loaded model.", metavar="SECONDS")
    ] = 60.0,
    charts: Annotated[
        Path | None, typer.Option(help="Folder for charts; needs matplotlib.", metavar="FOLDER")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Folder for the synthetic traces.", metavar="FOLDER")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON for each run.")] = False,
) -> int:
    """Replay a trace of requests under several policies."""
    from swapd.simulation.run import main

    argv = ["--memory", str(memory), "--hours", str(hours), "--seed", str(seed)]
    argv += ["--slots", str(slots), "--ttl", str(ttl), "--max-wait", str(max_wait)]
    argv += ["--trace", *map(str, trace)] if trace else []
    argv += ["--made", made] if made else []
    argv += ["--policies", policies] if policies else []
    for size in model or ():
        argv += ["--model", size]
    argv += ["--charts", str(charts)] if charts else []
    argv += ["--save", str(save)] if save else []
    argv += ["--json"] if as_json else []
    return main(argv)
