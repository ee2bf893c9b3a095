"""The worker's engine against llama.cpp's native server, and features of the worker alone.

Points: tokens per second and time to first token by clients, length of prompt, streamed and not;
the two sides take turns. Stall: the longest gap of four streams while a long prompt is processed.
Worker alone: adapters by number and use, and a burst of requests cancelled at random.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import shutil
import sys
from collections import defaultdict
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import psutil
import uvloop

from bench import common, generate
from bench.client import Answer, Connection
from bench.processes import Native, Started, Worker, has_peer

WORKER, NATIVE = "worker", "native"
CLIENTS = (1, 4, 8, 16)
SLOTS, CONTEXT = 16, 16_384
SHORT, LONG = 32, 512
STALL_PROMPT, STALL_STREAMS = 2000, 4
ADAPTERS = (1, 4, 16, 64)
LORA = common.ROOT / "demo" / "alice-lora.gguf"
Figures = dict[str, float]
Table = dict[str, dict[str, Figures]]


def request_body(seed: int, prompt: int, count: int, *, stream: bool, **more: object) -> bytes:
    """Return a request with a unique prompt, so that no part of it is cached."""
    dice = random.Random(seed)
    fields: dict[str, Any] = {
        "prompt": [dice.randrange(300, 900) for _ in range(prompt)],
        "max_tokens": count,
        "seed": seed,
        "temperature": 0.8,
        "top_k": 40,
        "ignore_eos": True,
        "cache_prompt": False,
        "stream": stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
        **more,
    }
    return msgspec.json.encode(fields)


async def send(url: str, body: bytes) -> Answer:
    """Send one request on a new connection; return the response."""
    connection = await Connection.open(url, keep=False)
    try:
        return (await connection.send("/v1/completions", body)).checked()
    finally:
        connection.close()


async def metric(url: str, name: str) -> float:
    """Return one figure of the worker's /metrics."""
    connection = await Connection.open(url, keep=False)
    text = (await connection.send("/metrics")).checked().body.decode()
    connection.close()
    found = re.search(rf"^llamacpp:{name} (\S+)$", text, re.MULTILINE)
    assert found is not None, f"/metrics has no {name}"
    return float(found[1])


def throughput(answers: list[Answer]) -> float:
    """Return the tokens per second of concurrent responses."""
    span = max(a.ended for a in answers) - min(a.began for a in answers)
    return sum(answer.tokens for answer in answers) / span


async def point(
    url: str, clients: int, seed: int, count: int, prompt: int, stream: bool
) -> Figures:
    """Run so many concurrent clients with one request each."""
    bodies = [request_body(seed + n, prompt, count, stream=stream) for n in range(clients)]
    answers = await asyncio.gather(*(send(url, body) for body in bodies))
    figures = {"tokens_per_second": throughput(answers)}
    if stream:
        figures["first_ms"] = 1e3 * common.median([answer.to_first for answer in answers])
    return figures


async def stall(url: str, seed: int, count: int) -> Figures:
    """Return the longest gap of four streams while a long prompt is processed."""
    streams = [
        asyncio.ensure_future(send(url, request_body(seed + n, SHORT, count, stream=True)))
        for n in range(STALL_STREAMS)
    ]
    await asyncio.sleep(1.0)
    late = await send(url, request_body(seed + 99, STALL_PROMPT, 1, stream=True))
    answers = await asyncio.gather(*streams)
    until = late.began + late.to_first
    gaps = [
        after - before
        for answer in answers
        for (before, _), (after, _) in pairwise(answer.texts())
        if after > late.began and before < until
    ]
    calm = [
        after - before
        for answer in answers
        for (before, _), (after, _) in pairwise(answer.texts())
        if after <= late.began
    ]
    return {
        "worst_gap_ms": 1e3 * max(gaps, default=float("nan")),
        "median_gap_ms": 1e3 * common.median(gaps),
        "calm_gap_ms": 1e3 * common.median(calm),
        "prompt_s": late.to_first,
    }


async def compare(sides: dict[str, Started], urls: dict[str, str], given: Any) -> Table:
    """Return medians by request, then by side."""
    samples: dict[str, dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))
    for number in range(-1, given.rounds):  # the round before warms both up
        for clients in given.clients:
            for prompt in given.prompts:
                for stream in [how == "streamed" for how in given.ways]:
                    title = f"{clients} × {prompt} tokens{', streamed' if stream else ''}"
                    for name in sides:
                        seed = 10_000 * (number + 1) + 100 * clients + prompt
                        figures = await point(
                            urls[name], clients, seed, given.tokens, prompt, stream
                        )
                        if number >= 0:
                            samples[title][name].append(figures)
                        common.settle(0.1)
        for name in sides if number >= 0 and given.stall_tokens else ():
            figures = await stall(urls[name], 777 + number, given.stall_tokens)
            samples["stall"][name].append(figures)
    return {
        what: {
            name: {key: common.median([f[key] for f in some]) for key in some[0]}
            for name, some in by_side.items()
        }
        for what, by_side in samples.items()
    }


def compare_sides(model: Path, given: Any, python: str | None) -> Table:
    """Measure both sides on one model."""
    with ExitStack() as stack:
        worker = Worker(model, slots=SLOTS, context=CONTEXT, threads=common.THREADS)
        sides: dict[str, Started] = {WORKER: stack.enter_context(worker)}
        urls = {WORKER: worker.url}
        if python is not None:
            native = Native(python, model, slots=SLOTS, context=CONTEXT, threads=common.THREADS)
            sides[NATIVE], urls[NATIVE] = stack.enter_context(native), native.url
        return asyncio.run(compare(sides, urls, given))


class Adapted(Started):
    """bard with a folder of adapters."""

    def __init__(self, folder: Path, most: int) -> None:
        words: list[object] = ["--model", common.BARD, "--port", 0, "--parallel", 8]
        words += ["--ctx-size", 8192, "--adapters", folder, "--max-loras", most]
        argv = [sys.executable, "-m", "workers.serve", *map(str, words)]
        super().__init__(argv, {}, None, ready_option="SWAPD_READY_FD={fd}")
        self.url = f"http://{self.word['host']}:{self.word['port']}"


async def with_adapters(url: str, names: list[str], seed: int, requests: int) -> Figures:
    """Run eight clients, each request with the next adapter of `names`."""
    before = await metric(url, "adapter_load_seconds_sum")
    loads = await metric(url, "adapter_load_seconds_count")
    rest = [
        request_body(seed + n, SHORT, 32, stream=False, model=f"bard:{names[n % len(names)]}")
        for n in range(requests)
    ]
    answers: list[Answer] = []

    async def client() -> None:
        while rest:
            answers.append(await send(url, rest.pop()))

    await asyncio.gather(*(client() for _ in range(8)))
    loads = await metric(url, "adapter_load_seconds_count") - loads
    spent = await metric(url, "adapter_load_seconds_sum") - before
    return {
        "tokens_per_second": throughput(answers),
        "loads": loads,
        "load_ms": 1e3 * spent / loads if loads else float("nan"),
    }


def adapters(rounds: int, most: int = 8) -> dict[str, Figures]:
    """Measure by number of adapters, with even use and with use mostly of the first ones."""
    result = {}
    with common.home() as folder:
        for number in range(max(ADAPTERS)):
            shutil.copy(LORA, folder / f"a{number}.gguf")
        with Adapted(folder, most) as worker:
            for count in ADAPTERS:
                dice = random.Random(count)
                names = [f"a{number}" for number in range(count)]
                weights = [1 / (rank + 1) ** 1.5 for rank in range(count)]
                uses = {
                    "even": [dice.choice(names) for _ in range(256)],
                    "skewed": dice.choices(names, weights, k=256),
                }
                for how, chosen in uses.items():
                    some = [
                        asyncio.run(with_adapters(worker.url, chosen, 1000 * n, 96))
                        for n in range(rounds)
                    ]
                    result[f"{count} adapters, {how}"] = {
                        key: common.median([figures[key] for figures in some]) for key in some[0]
                    }
    return result


async def storm(url: str, pid: int, requests: int) -> Figures:
    """Mixed requests, half of them hung up on; what is left behind."""
    process, dice = psutil.Process(pid), random.Random(1)
    wave = 100

    async def one(number: int) -> None:
        body = request_body(
            number, dice.randrange(4, 300), dice.randrange(1, 60), stream=number % 2 == 0
        )
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(send(url, body), dice.choice([0.05, 0.3, 60]))

    async def run(first: int) -> None:
        await asyncio.gather(*(one(first + n) for n in range(wave)))

    await run(0)
    common.settle(1)
    memory, files = process.memory_info().rss, process.num_fds()
    for first in range(wave, requests + wave, wave):
        await run(first)
    common.settle(1)
    return {
        "requests": requests,
        "more_megabytes": (process.memory_info().rss - memory) / 1e6,
        "more_descriptors": process.num_fds() - files,
        "still_processing": await metric(url, "requests_processing"),
        "still_waiting": await metric(url, "requests_deferred"),
    }


def show(title: str, result: Table) -> dict[str, Figures]:
    """Print the tables of one model; return the ratios of the worker to the peer."""
    ratios = {}
    for what, sides in result.items():
        keys = list(sides[WORKER])
        rows: list[list[object]] = [[name, *figures.values()] for name, figures in sides.items()]
        if NATIVE in sides:
            ratios[what] = {
                key: common.ratio(sides[WORKER][key], sides[NATIVE][key]) for key in keys
            }
            rows.append(["worker / native", *ratios[what].values()])
        common.print_table(f"{title}: {what}", ["", *keys], rows)
    return ratios


def main() -> None:
    """Run the command line."""
    parser: argparse.ArgumentParser = common.arguments(__doc__, peer=True)
    parser.add_argument("--sizes", type=int, nargs="*", default=[60], metavar="MB")
    parser.add_argument("--clients", type=int, nargs="*", default=list(CLIENTS))
    parser.add_argument("--prompts", type=int, nargs="*", default=[SHORT, LONG], metavar="TOKENS")
    ways = ["streamed", "whole"]
    parser.add_argument("--ways", nargs="*", default=ways, choices=ways)
    parser.add_argument("--tokens", type=int, default=64, help="tokens an answer")
    parser.add_argument(
        "--stall-tokens", type=int, default=300, help="of the streams; 0: leave out"
    )
    parser.add_argument("--storm", type=int, default=1000, help="requests; 0: leave out")
    given = parser.parse_args()
    models = {f"{size} MB": generate.model(size) for size in given.sizes}
    conditions = common.Conditions()
    uvloop.install()
    python = given.peer_python if has_peer(given.peer_python) else None
    result: dict[str, Any] = {}
    for title, model in models.items():
        common.note(title)
        figures = compare_sides(model, given, python)
        result[title] = {"figures": figures, "ratios": show(title, figures)}
    if given.storm:
        common.note("adapters and storm")
        result["adapters"] = adapters(min(given.rounds, 3))
        rows = [[what, *figures.values()] for what, figures in result["adapters"].items()]
        common.print_table("adapters on bard", ["", "tokens/s", "loads", "load ms"], rows)
        with Worker(common.BARD, slots=8, context=8192, threads=common.THREADS) as worker:
            result["storm"] = asyncio.run(storm(worker.url, worker.pid, given.storm))
        print(f"\nstorm: {result['storm']}")
    common.print_json("engine", conditions, result)


if __name__ == "__main__":
    main()
