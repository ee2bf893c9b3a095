"""Commands that talk with a model: their options, and no more."""

from __future__ import annotations

from typing import Annotated

import typer

from swapd.doors.cli.words import Json, Name

Prompt = Annotated[
    list[str] | None, typer.Argument(metavar="PROMPT", help="What to ask; none: a chat.")
]


def run(  # noqa: PLR0913, PLR0917
    name: Name,
    prompt: Prompt = None,
    system: Annotated[str, typer.Option(help="What the model is told about itself.")] = "",
    temp: Annotated[float | None, typer.Option(help="Temperature.", min=0)] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling.", min=0, max=1)] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the likeliest so many.", min=0)] = None,
    min_p: Annotated[float | None, typer.Option(help="Least probability.", min=0, max=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.", min=1)] = None,
) -> None:
    """Chat with a model, or ask it one thing.

    Starts swapd if it does not run.
    """
    from swapd.doors.cli import chat

    wishes = {
        "temperature": temp,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "seed": seed,
        "max_tokens": max_tokens,
    }
    settings = {key: value for key, value in wishes.items() if value is not None}
    raise typer.Exit(chat.run(name, " ".join(prompt or ()), system, settings))


def bench(
    name: Name,
    requests: Annotated[int, typer.Option(help="How often to ask.", min=1)] = 3,
    tokens: Annotated[int, typer.Option(help="Longest answer.", min=2)] = 64,
    as_json: Json = False,
) -> None:
    """Measure a model: time to first token and tokens a second."""
    from swapd.doors.cli import bench as module

    raise typer.Exit(module.bench(name, requests, tokens, as_json))
