"""Cost of a conversation after its model was swapped out: recomputed, or restored from disk.

A worker answers a long prompt and is stopped as swapd stops workers; a new worker gets the same
prompt: once without a folder for its KV cache, once with one. The time to the first token starts
with the request, with the worker already up, so that the figures compare prefill and restore only.
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
"""Generated tokens, which must be the same each time."""


class Keeper(Started):
    """Built-in worker with or without a folder for its KV cache."""

    def __init__(self, model: Path, context: int, threads: int, folder: Path | None) -> None:
        words: list[object] = ["--model", model, "--port", 0, "--parallel", 1]
        words += ["--ctx-size", context, "--threads", threads]
        words += ["--slot-save-path", folder] if folder is not None else []
        argv = [sys.executable, "-m", "workers.serve", *map(str, words)]
        super().__init__(argv, {}, None, ready_option="SWAPD_READY_FD={fd}")
        if not self.word.get("ready"):
            common.give_up(f"the worker does not come up: {self.word}")
        self.url = f"http://{self.word['host']}:{self.word['port']}"

    def end(self) -> float:
        """Return the seconds from SIGTERM to exit, with standard input open, as swapd does it."""
        began = time.perf_counter()
        self.process.terminate()
        self.process.wait()
        return time.perf_counter() - began


def body(tokens: int, seed: int) -> bytes:
    """Return a prompt of so many tokens, the same for the same seed."""
    dice = random.Random(seed)
    prompt = [dice.randrange(300, 900) for _ in range(tokens)]
    options = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    request = {"prompt": prompt, "max_tokens": ANSWER, "temperature": 0}
    return msgspec.json.encode({**request, **options})


def send(url: str, request: bytes) -> Answer:
    """Send one request; return the response."""

    async def once() -> Answer:
        connection = await Connection.open(url, keep=False)
        answer = (await connection.send("/v1/completions", request)).checked()
        connection.close()
        return answer

    return asyncio.run(once())


def text_of(answer: Answer) -> str:
    """Return the text of a response."""
    return "".join(text for _, text in answer.texts())


def measure(model: Path, tokens: int, rounds: int, threads: int) -> Figures:
    """Return medians over so many swaps out and in."""
    samples: dict[str, list[float]] = {}
    for number in range(rounds):
        request = body(tokens, number)
        with common.home() as folder:
            with Keeper(model, tokens + 512, threads, folder) as worker:
                cold = send(worker.url, request)
                warm = send(worker.url, request)
                stop = worker.end()
            size = sum(path.stat().st_size for path in folder.glob("*/*"))
            with Keeper(model, tokens + 512, threads, folder) as worker:
                restored = send(worker.url, request)
        figures = {
            "computed_ms": 1e3 * cold.to_first,
            "restored_ms": 1e3 * restored.to_first,
            "in_cache_ms": 1e3 * warm.to_first,
            "times_faster": cold.to_first / restored.to_first,
            "stop_ms": 1e3 * stop,
            "megabytes": size / 1e6,
            "same_as_unswapped": float(text_of(restored) == text_of(warm)),
        }
        for key, value in figures.items():
            samples.setdefault(key, []).append(value)
    return {key: common.median(values) for key, values in samples.items()}


def main() -> None:
    """Run the command line."""
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
