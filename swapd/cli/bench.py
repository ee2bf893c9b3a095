"""`bench`: measure a model through the endpoint, as a client sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from swapd.cli.options import Json, Name
from swapd.cli.output import FailedError, print_json, table, waiting
from swapd.paths import find_paths

if TYPE_CHECKING:
    from swapd.system.lockfile import LockHolder

PROMPT = "Tell me of the sea, the wind and the stars, and do not stop too soon."


def bench(
    name: Name,
    requests: Annotated[int, typer.Option(help="Number of requests.", min=1)] = 3,
    tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=2)] = 64,
    as_json: Json = False,
) -> int:
    """Measure a model: time to first token and tokens per second."""
    from statistics import median

    from swapd.cli.client import post, require_running, with_model
    from swapd.system.aio import now

    holder = require_running(find_paths())
    begun = now()
    with waiting(f"loading {name}"):
        model = post(holder, with_model("/load", name))["loaded"]
    loaded = now() - begun
    with waiting(f"sending {requests} requests to {model}"):
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


def _measure(holder: LockHolder, model: str, max_tokens: int) -> dict[str, float]:
    """Measure one streamed request."""
    from swapd.cli.client import stream
    from swapd.system.aio import now

    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun, first, last, chunks, counted, reported = now(), 0.0, 0.0, 0, 0, 0.0
    for event in stream(holder, "/v1/chat/completions", body):
        counted = (event.get("usage") or {}).get("completion_tokens", counted)
        reported = (event.get("timings") or {}).get("predicted_per_second", reported)
        if any(_has_text(choice) for choice in event.get("choices", ())):
            last = now()
            first = first or last
            chunks += 1
    if not chunks:
        raise FailedError(f"{model} returned an empty answer; try more --tokens")
    tokens = counted or chunks
    # The speed that the worker reports wins: a short answer may arrive in one chunk, in no time.
    measured = (tokens - 1) / (last - first) if last > first else 0.0
    return {
        "first_token_seconds": first - begun,
        "tokens": tokens,
        "tokens_per_second": reported or measured,
    }


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(delta.get("content") or delta.get("reasoning_content"))
