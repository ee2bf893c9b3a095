"""A small measurement through the endpoint, as a client would see it."""

from __future__ import annotations

from statistics import median
from typing import Annotated, Any

import typer

from swapd.cli.client import named, post, require_running, stream
from swapd.cli.options import Json, Name
from swapd.cli.output import FailedError, print_json, table, waiting
from swapd.paths import find_paths
from swapd.system.aio import now
from swapd.system.lockfile import LockHolder

PROMPT = "Tell me of the sea, the wind and the stars, and do not stop too soon."


def measure(name: str, requests: int, tokens: int, as_json: bool) -> int:
    """Ask so many times, one after the other; tell time to first token and tokens a second."""
    holder = require_running(find_paths())
    begun = now()
    with waiting(f"loading {name}"):
        model = post(holder, named("/load", name))["loaded"]
    loaded = now() - begun
    with waiting(f"asking {model} {requests} times"):
        runs = [_measure(holder, model, tokens) for _ in range(requests)]
    if as_json:
        print_json({"model": model, "load_seconds": loaded, "requests": runs})
        return 0
    rows = [_row(str(i), run) for i, run in enumerate(runs, 1)]
    rows.append(_row("median", {key: median(run[key] for run in runs) for key in runs[0]}))
    print(f"{model}: ready after {loaded:.2f} s")
    head = ["REQUEST", ">FIRST TOKEN ms", ">TOKENS", ">TOKENS/s"]
    print("\n".join(table(head, rows)))
    return 0


def _row(title: str, run: dict[str, float]) -> list[str]:
    speed = f"{run['tokens_per_second']:.1f}" if run["tokens_per_second"] else ""
    return [title, f"{run['first_token_seconds'] * 1000:.1f}", f"{run['tokens']:.0f}", speed]


def _measure(holder: LockHolder, model: str, tokens: int) -> dict[str, float]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun, first, last, pieces, counted, told = now(), 0.0, 0.0, 0, 0, 0.0
    for event in stream(holder, "/v1/chat/completions", body):
        counted = (event.get("usage") or {}).get("completion_tokens", counted)
        told = (event.get("timings") or {}).get("predicted_per_second", told)
        if any(_says(choice) for choice in event.get("choices", ())):
            last = now()
            first = first or last
            pieces += 1
    if not pieces:
        raise FailedError(f"{model} answered with nothing; ask it for more tokens")
    made = counted or pieces
    # A worker's own word, if it gives it: a short answer may come in one piece, at no time at all.
    seen = (made - 1) / (last - first) if last > first else 0.0
    return {
        "first_token_seconds": first - begun,
        "tokens": made,
        "tokens_per_second": told or seen,
    }


def _says(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(delta.get("content") or delta.get("reasoning_content"))


def bench(
    name: Name,
    requests: Annotated[int, typer.Option(help="How often to ask.", min=1)] = 3,
    tokens: Annotated[int, typer.Option(help="Longest answer.", min=2)] = 64,
    as_json: Json = False,
) -> None:
    """Measure a model: time to first token and tokens a second."""
    raise typer.Exit(measure(name, requests, tokens, as_json))
