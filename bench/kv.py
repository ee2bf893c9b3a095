"""What a conversation costs after its model was swapped out: recomputed, and restored from disk.

A worker answers a long prompt, is stopped as swapd stops one, and a new one is asked the same
prompt: once without a folder for its KV, once with one. First tokens are timed from the request,
with the worker already up, so that the figures are prefill against restore and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from pathlib import Path

import msgspec

from bench import common, generate
from bench.client import Answer, Connection
from bench.processes import Started

Figures = dict[str, float]
ANSWER = 24
"""Tokens generated, which must be the same ones each time."""


class Keeper(Started):
    """Our worker, with or without a folder for what it keeps."""

    def __init__(self, model: Path, context: int, threads: int, folder: Path | None) -> None:
        words: list[object] = ["--model", model, "--port", 0, "--parallel", 1]
        words += ["--ctx-size", context, "--threads", threads]
        words += ["--slot-save-path", folder] if folder is not None else []
        argv = [sys.executable, "-m", "workers.serve", *map(str, words)]
        super().__init__(argv, {}, None, tell="SWAPD_READY_FD={fd}")
        if not self.word.get("ready"):
            common.give_up(f"the worker does not come up: {self.word}")
        self.url = f"http://{self.word['host']}:{self.word['port']}"

    def end(self) -> float:
        """Seconds from SIGTERM to its end, as swapd does it: standard input stays open."""
        began = time.perf_counter()
        self.process.terminate()
        self.process.wait()
        return time.perf_counter() - began


def body(tokens: int, seed: int) -> bytes:
    """A prompt of so many tokens, the same for the same seed."""
    dice = random.Random(seed)
    prompt = [dice.randrange(300, 900) for _ in range(tokens)]
    options = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    wish = {"prompt": prompt, "max_tokens": ANSWER, "temperature": 0}
    return msgspec.json.encode({**wish, **options})


def ask(url: str, wish: bytes) -> Answer:
    """One answer."""

    async def once() -> Answer:
        connection = await Connection.open(url, keep=False)
        answer = (await connection.ask("/v1/completions", wish)).checked()
        connection.close()
        return answer

    return asyncio.run(once())


def said(answer: Answer) -> str:
    """The text of it."""
    return "".join(text for _, text in answer.texts())


def measure(model: Path, tokens: int, rounds: int, threads: int) -> Figures:
    """Medians of so many swaps there and back."""
    seen: dict[str, list[float]] = {}
    for number in range(rounds):
        wish = body(tokens, number)
        with common.home() as folder:
            with Keeper(model, tokens + 512, threads, folder) as worker:
                cold = ask(worker.url, wish)
                warm = ask(worker.url, wish)
                stop = worker.end()
            size = sum(path.stat().st_size for path in folder.glob("*/*"))
            with Keeper(model, tokens + 512, threads, folder) as worker:
                restored = ask(worker.url, wish)
        figures = {
            "computed_ms": 1e3 * cold.to_first,
            "restored_ms": 1e3 * restored.to_first,
            "in_cache_ms": 1e3 * warm.to_first,
            "times_faster": cold.to_first / restored.to_first,
            "stop_ms": 1e3 * stop,
            "megabytes": size / 1e6,
            "same_as_unswapped": float(said(restored) == said(warm)),
        }
        for key, value in figures.items():
            seen.setdefault(key, []).append(value)
    return {key: common.median(values) for key, values in seen.items()}


def main() -> None:
    """The command line."""
    parser: argparse.ArgumentParser = common.arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[60, 800], metavar="MB")
    parser.add_argument("--tokens", type=int, default=1500, help="tokens of the prompt")
    parser.add_argument(
        "--threads", type=int, default=common.THREADS, help="1: the answers must be the same"
    )
    given = parser.parse_args()
    conditions = common.Conditions()
    result = {}
    for size in given.sizes:
        common.note(f"{size} MB, {given.tokens} tokens")
        result[f"{size} MB"] = measure(
            generate.model(size), given.tokens, given.rounds, given.threads
        )
    keys = list(next(iter(result.values())))
    rows: list[list[object]] = [
        [title, *(figures[key] for key in keys)] for title, figures in result.items()
    ]
    common.print_table(f"{given.tokens} tokens after a swap", ["", *keys], rows)
    common.print_json("kv", conditions, result)


if __name__ == "__main__":
    main()
