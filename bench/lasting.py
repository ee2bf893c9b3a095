"""Long run of swapd: memory and descriptors after many requests and many swaps.

There is no peer for this; the targets are printed with the figures: memory within 10 % of that
after the first hundred, and no additional descriptor.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import psutil

from bench import common
from bench.client import Connection
from bench.processes import Daemon

FIRST = 100
QUIET = 6.0
"""Seconds until idle connections to workers are closed and late responses have arrived."""


def held(pid: int) -> dict[str, float]:
    """Return the memory and descriptors that the daemon holds now."""
    process = psutil.Process(pid)
    return {"MB": process.memory_full_info().uss / 1e6, "descriptors": process.num_fds()}


def body(model: str) -> bytes:
    """Return a short streamed request."""
    messages = [{"role": "user", "content": "Who goes there?"}]
    fields = {"model": model, "max_tokens": 2, "stream": True, "messages": messages}
    return msgspec.json.encode(fields)


async def send(url: str, models: list[str], times: int) -> None:
    """Send so many sequential requests, to the models in turn."""
    connection = await Connection.open(url)
    bodies = [body(model) for model in models]
    for i in range(times):
        (await connection.send("/v1/chat/completions", bodies[i % len(bodies)])).checked()
    connection.close()


def measure(daemon: Daemon, models: list[str], times: int) -> dict[str, Any]:
    """Before, after the first hundred, and at the end."""
    asyncio.run(send(daemon.url, models, FIRST))
    time.sleep(QUIET)
    first = held(daemon.pid)
    began = time.perf_counter()
    asyncio.run(send(daemon.url, models, times - FIRST))
    seconds = time.perf_counter() - began
    time.sleep(QUIET)
    last = held(daemon.pid)
    grown = 100 * (last["MB"] / first["MB"] - 1)
    return {"first": first, "last": last, "grown_percent": grown, "seconds": seconds}


def main() -> None:
    """Run the command line."""
    parser = common.arguments(__doc__, rounds=False)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--swaps", type=int, default=1_000)
    given = parser.parse_args()
    conditions = common.Conditions()
    models = {
        path.stem: {"cmd": f"${{worker}} --model '{path}' --parallel 1 --threads {common.THREADS}"}
        for path in (common.BARD, common.ALICE)
    }
    runs: dict[str, dict[str, Any]] = {}
    with common.home() as home, Daemon(home, {"models": models}) as daemon:
        runs[f"{given.requests} requests"] = measure(daemon, ["bard"], given.requests)
    swapping = {"models": models, "max_resident": 1, "max_turn": 0}
    with common.home() as home, Daemon(home, swapping) as daemon:
        runs[f"{given.swaps} swaps"] = measure(daemon, ["bard", "alice"], given.swaps)
    rows = [
        [
            name,
            *(r["first"]["MB"], r["last"]["MB"], r["grown_percent"]),
            *(r["first"]["descriptors"], r["last"]["descriptors"], r["seconds"]),
        ]
        for name, r in runs.items()
    ]
    head = ["aims: 10 %, equal", f"MB after {FIRST}", "at the end", "%", "fds", "at the end", "s"]
    common.print_table("memory and descriptors of swapd", head, rows)
    common.print_json("lasting", conditions, runs)


if __name__ == "__main__":
    main()
