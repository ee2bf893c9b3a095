"""Tokens per second and time to first token at 1, 4 and 8 streams, against the native server.

Both serve the same file with the same threads and slots; they take turns, and the other one
sleeps. The worker reports Python's share of a step itself.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench import common, generate
from bench.client import Answer, Connection
from bench.processes import Native, Started, Worker, has_peer

STREAMS = (1, 4, 8)
SLOTS = 8
CONTEXT = 8192
WORKER, NATIVE = "worker", "native"
WORDS = "Who goes there? A friend of the king, and what news from the north, good my lord?"
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "ignore_eos": True}
COUNTERS = ("step_seconds", "llama_seconds", "loop_seconds", "n_decode")
Figures = dict[str, float]


def body(number: int, count: int) -> bytes:
    """Return a request with a unique prompt: not cached, and the same on both sides."""
    dice, words = random.Random(number), WORDS.split()
    prompt = " ".join(dice.choice(words) for _ in range(24))
    fields: dict[str, Any] = {"prompt": prompt, "max_tokens": count, "seed": number}
    options = {"stream": True, "stream_options": {"include_usage": True}, "cache_prompt": False}
    return msgspec.json.encode({**fields, **options, **SAMPLING})


async def counters(url: str) -> Figures:
    """Return the counters of the built-in worker."""
    connection = await Connection.open(url, keep=False)
    text = (await connection.send("/metrics")).checked().body.decode()
    connection.close()
    found = {}
    for name in COUNTERS:
        match = re.search(rf"^llamacpp:{name}(?:_total)? (\S+)$", text, re.MULTILINE)
        assert match is not None, f"/metrics has no {name}"
        found[name] = float(match[1])
    return found


def point(answers: Sequence[Answer], cpu: float) -> Figures:
    """Return the figures of some concurrent streams."""
    tokens = sum(answer.tokens for answer in answers)
    span = max(a.ended for a in answers) - min(a.began for a in answers)
    gaps = [
        after - before
        for answer in answers
        for (before, _), (after, _) in zip(answer.texts(), answer.texts()[1:], strict=False)
    ]
    return {
        "tokens_per_second": tokens / span,
        "first_ms": 1e3 * common.median([a.to_first for a in answers]),
        "gap_ms": 1e3 * common.median(gaps),
        "worst_gap_ms": 1e3 * max(gaps),
        "cpu_ms_per_token": 1e3 * cpu / tokens,
    }


async def run(side: Started, url: str, streams: int, count: int, seed: int) -> Figures:
    """Run so many concurrent streams with one request each."""
    connections = [await Connection.open(url, keep=False) for _ in range(streams)]
    own = isinstance(side, Worker)
    before = await counters(url) if own else {}
    cpu = common.cpu_seconds(side.pid)
    answers = await asyncio.gather(
        *(
            connection.send("/v1/completions", body(seed + number, count))
            for number, connection in enumerate(connections)
        )
    )
    cpu = common.cpu_seconds(side.pid) - cpu
    for connection in connections:
        connection.close()
    figures = point([answer.checked() for answer in answers], cpu)
    if own:
        spent = {name: now - before[name] for name, now in (await counters(url)).items()}
        figures["step_ms"] = 1e3 * spent["step_seconds"] / spent["n_decode"]
        outside = 1 - spent["llama_seconds"] / spent["step_seconds"]
        figures["outside_llama"] = outside
        figures["python_share"] = outside + spent["loop_seconds"] / spent["step_seconds"]
    return figures


async def measure(
    model: Path, rounds: int, count: int, python: str | None
) -> dict[str, dict[str, Figures]]:
    """Return medians by number of streams, then by side."""
    samples: dict[str, dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))
    with ExitStack() as stack:
        worker = Worker(model, slots=SLOTS, context=CONTEXT, threads=common.THREADS)
        sides: dict[str, tuple[Started, str]] = {WORKER: (stack.enter_context(worker), worker.url)}
        if python is not None:
            native = Native(python, model, slots=SLOTS, context=CONTEXT, threads=common.THREADS)
            sides[NATIVE] = (stack.enter_context(native), native.url)
        for number in range(-1, rounds):
            for streams in STREAMS:
                for name, (side, url) in sides.items():
                    seed = 1000 * (number + 1) + 10 * streams
                    figures = await run(side, url, streams, count, seed)
                    if number >= 0:  # the round before warms both up
                        samples[f"{streams} streams"][name].append(figures)
                    common.settle(0.1)
    return {
        what: {
            name: {key: common.median([f[key] for f in some]) for key in some[0]}
            for name, some in by_side.items()
        }
        for what, by_side in samples.items()
    }


def show(title: str, result: dict[str, dict[str, Figures]]) -> dict[str, Figures]:
    """Print the table of one model; return the ratios to the peer, by number of streams."""
    keys = {
        "tokens_per_second": "tokens/s",
        "first_ms": "first ms",
        "gap_ms": "gap ms",
        "worst_gap_ms": "worst gap ms",
        "cpu_ms_per_token": "CPU ms/token",
        "step_ms": "step ms",
        "outside_llama": "outside llama",
        "python_share": "+ event loop",
    }
    rows: list[list[object]] = []
    ratios: dict[str, Figures] = {}
    for what, sides in result.items():
        for name, figures in sides.items():
            rows.append([f"{what}, {name}", *(figures.get(key, float("nan")) for key in keys)])
        if NATIVE in sides:
            ratios[what] = {
                key: common.ratio(sides[WORKER][key], sides[NATIVE][key])
                for key in ("tokens_per_second", "first_ms", "cpu_ms_per_token")
            }
    common.print_table(title, ["", *keys.values()], rows)
    if ratios:
        lines = [[what, *figures.values()] for what, figures in ratios.items()]
        common.print_table(f"{title}: worker / native", ["", "tokens/s", "first", "CPU"], lines)
    return ratios


def main() -> None:
    """Run the command line."""
    parser: argparse.ArgumentParser = common.arguments(__doc__, peer=True)
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[60], metavar="MB", help="default: 60"
    )
    parser.add_argument("--tokens", type=int, default=128, help="tokens a stream")
    given = parser.parse_args()
    models = {"demo (bard)": common.BARD}
    models |= {f"{size} MB": generate.model(size) for size in given.sizes}
    conditions = common.Conditions()
    uvloop.install()
    python = given.peer_python if has_peer(given.peer_python) else None
    result, ratios = {}, {}
    for title, model in models.items():
        common.note(title)
        result[title] = asyncio.run(measure(model, given.rounds, given.tokens, python))
        ratios[title] = show(title, result[title])
    common.print_json("tokens", conditions, {"figures": result, "ratios": ratios})


if __name__ == "__main__":
    main()
