"""Time from the request for a model that is not loaded to its first token, with capacity for one.

A, B, A, B … through swapd over HTTP, streamed. swapd's log has the end of each phase. In turn
with it: the native server, ended and started again by the fastest means, which is the least work
that any supervisor of it could do. (Its own router mode is not in the package of the peer;
`docs/benchmarks.md` quotes a figure of it.)
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench import common, generate
from bench.client import Connection
from bench.processes import Daemon, Native, has_peer

PHASES = ("decide", "old one's exit", "spawn", "until ready", "first token")
Phases = dict[str, float]
"""Milliseconds by phase, and `total`."""
PEER_PHASES = {"import": "import_seconds", "load": "load_seconds"}


def body(model: str) -> bytes:
    """Return a short prompt with few tokens: only the first one counts."""
    messages = [{"role": "user", "content": "Who goes there?"}]
    fields: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
    fields |= {"max_tokens": 4, "temperature": 0, "cache_prompt": False}
    return msgspec.json.encode(fields)


async def send(connection: Connection, model: str) -> tuple[float, float]:
    """Return the time of the request, in seconds since 1970, and the seconds to the first token."""
    wall = time.time()
    answer = await connection.send("/v1/chat/completions", body(model))
    return wall, answer.checked().to_first


def phases(lines: list[str], started: float, first: float) -> Phases:
    """Return the phases of one swap, from the lines that swapd logged during it."""
    stamps = [started]
    for marker in (": stopping pid", ": the worker", ": started as pid", ": ready after"):
        line = next(line for line in lines if marker in line)
        stamps.append(datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp())
    stamps.append(started + first)
    # The log's clock has milliseconds: a phase may seem to end before it began.
    spans = [max(0.0, b - a) * 1e3 for a, b in pairwise(stamps)]
    return {**dict(zip(PHASES, spans, strict=True)), "total": first * 1e3}


async def through_swapd(
    daemon: Daemon, names: tuple[str, str], swaps: int, pause: float
) -> list[Phases]:
    """Measure sequential swaps; then one more request to each warm worker is `warm`."""
    connection = await Connection.open(daemon.url)
    await send(connection, names[0])
    found = []
    for number in range(swaps):
        common.settle(pause)
        before = len(daemon.log().splitlines())
        name = names[(number + 1) % 2]
        started, first = await send(connection, name)
        _, warm = await send(connection, name)
        swap = phases(daemon.log().splitlines()[before:], started, first)
        found.append({**swap, "warm": warm * 1e3})
    connection.close()
    return found


async def of_native(
    python: str, models: tuple[Path, Path], swaps: int, pause: float
) -> list[Phases]:
    """Measure the native server: end the old process, start the new one, send the request."""
    found = []
    old = Native(python, models[0], slots=1, context=1024, threads=common.THREADS)
    try:
        for number in range(swaps):
            common.settle(pause)
            began = time.perf_counter()
            old.stop()
            gone = time.perf_counter()
            model = models[(number + 1) % 2]
            old = Native(python, model, slots=1, context=1024, threads=common.THREADS)
            ready = time.perf_counter()
            connection = await Connection.open(old.url, keep=False)
            _, first = await send(connection, "native")
            end = ready + first
            _, warm = await send(connection, "native")
            connection.close()
            spans = [gone - began, ready - gone, end - ready, end - began, warm]
            names = ("old one's exit", "until ready", "first token", "total", "warm")
            swap = dict(zip(names, (1e3 * span for span in spans), strict=True))
            times = {phase: 1e3 * old.word[field] for phase, field in PEER_PHASES.items()}
            found.append({**swap, **times})
    finally:
        old.stop()
    return found


def configuration(models: tuple[Path, Path]) -> dict[str, Any]:
    """Return a configuration with two models of the built-in worker and capacity for one."""
    flags = f"--parallel 1 --ctx-size 1024 --threads {common.THREADS}"
    entries = {
        name: {"cmd": f"${{worker}} --model '{path}' {flags}"}
        for name, path in zip(("a", "b"), models, strict=True)
    }
    return {"max_resident": 1, "models": entries}


async def measure(
    models: tuple[Path, Path], rounds: int, python: str | None, pause: float
) -> dict[str, list[Phases]]:
    """Two swaps a round and a side, the sides in turn."""
    samples: dict[str, list[Phases]] = {"swapd": []}
    with common.home() as home, Daemon(home, configuration(models)) as daemon:
        sides: list[tuple[str, Callable[[], Awaitable[list[Phases]]]]] = [
            ("swapd", lambda: through_swapd(daemon, ("a", "b"), 2, pause))
        ]
        if python is not None:
            samples["native"] = []
            sides.append(("native", lambda: of_native(python, models, 2, pause)))
        for _ in range(rounds):
            for name, side in sides:
                samples[name] += await side()
                common.settle(0.2)
    return samples


def show(title: str, samples: dict[str, list[Phases]]) -> dict[str, Any]:
    """Print the table of one pair of models; return its medians, best and worst."""
    phases_ = [*PHASES, "total", "best total", "worst total", "warm"]
    summary: dict[str, Phases] = {}
    for name, swaps in samples.items():
        summary[name] = {
            phase: common.median([swap[phase] for swap in swaps]) for phase in swaps[0]
        }
        summary[name]["best total"] = min(swap["total"] for swap in swaps)
        summary[name]["worst total"] = max(swap["total"] for swap in swaps)
        summary[name]["swaps"] = len(swaps)
    nothing = float("nan")
    rows = [
        [name, *(figures.get(phase, nothing) for phase in phases_)]
        for name, figures in summary.items()
    ]
    common.print_table(f"{title}: ms, medians", ["", *phases_], rows)
    return summary


def pairs(sizes: list[int]) -> dict[str, tuple[Path, Path]]:
    """Return the demo models, and two files of each size."""
    found = {"demo": (common.BARD, common.ALICE)}
    for size in sizes:
        found[f"{size} MB"] = (generate.model(size, 1), generate.model(size, 2))
    for pair in found.values():
        for path in pair:
            path.read_bytes()  # into the page cache: disks are not what is measured
    return found


def main() -> None:
    """Run the command line."""
    parser: argparse.ArgumentParser = common.arguments(__doc__, peer=True)
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[60], metavar="MB", help="default: 60"
    )
    parser.add_argument(
        "--pause",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="before each swap; swapd's warm standby needs some 0.2 to be warm again",
    )
    given = parser.parse_args()
    models = pairs(given.sizes)
    conditions = common.Conditions()
    uvloop.install()
    python = given.peer_python if has_peer(given.peer_python) else None
    result = {}
    for title, pair in models.items():
        common.note(title)
        samples = asyncio.run(measure(pair, given.rounds, python, given.pause))
        result[title] = show(title, samples)
        if python is not None:
            both = (result[title]["swapd"]["total"], result[title]["native"]["total"])
            result[title]["ratio"] = common.ratio(*both)
            print(f"\nswapd / native: {result[title]['ratio']:.2f}")
    common.print_json("swap", conditions, {"milliseconds": result})


if __name__ == "__main__":
    main()
