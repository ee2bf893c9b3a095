"""Cost of swapd per request and per streamed token, against direct requests to the worker.

The worker is an upstream of prepared bytes. Each round measures each route in turn: direct,
through a plain aiohttp proxy, and through swapd.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench import common
from bench.client import Answer, Connection
from bench.processes import Daemon, Started

HERE = Path(__file__).parent
CLIENTS = (1, 16)
PAUSE = 0.01
"""Between the tokens of a paced stream: a model that is quicker than most."""
BODY = {
    "model": "upstream",
    "messages": [{"role": "user", "content": "Who goes there? " * 8}],
    "temperature": 0,
}
NOTHING = float("nan")
Figures = dict[str, float]


@dataclass(frozen=True)
class Route:
    """A route to the upstream."""

    name: str
    url: str
    pid: int | None
    """Pid of the process whose CPU time counts; None on the direct route."""

    def cpu(self) -> float:
        """Return the seconds of CPU time that the process has used."""
        return 0.0 if self.pid is None else common.cpu_seconds(self.pid)


async def run(route: Route, clients: int, each: int, body: bytes) -> tuple[list[Answer], Figures]:
    """Send `each` sequential requests from every client."""
    connections = [await Connection.open(route.url) for _ in range(clients)]

    async def client(connection: Connection) -> list[Answer]:
        return [
            (await connection.send("/v1/chat/completions", body)).checked() for _ in range(each)
        ]

    cpu, began = route.cpu(), time.perf_counter()
    answers = await asyncio.gather(*map(client, connections))
    wall, cpu = time.perf_counter() - began, route.cpu() - cpu
    for connection in connections:
        connection.close()
    return [a for some in answers for a in some], {"wall": wall, "cpu": cpu}


async def requests(route: Route, clients: int, each: int) -> Figures:
    """Whole answers: latency, rate, and CPU of a request."""
    answers, used = await run(route, clients, each, msgspec.json.encode(BODY))
    times = [a.seconds * 1e3 for a in answers]
    return {
        "median_ms": common.median(times),
        "p99_ms": common.percentile(times, 0.99),
        "per_second": len(answers) / used["wall"],
        "cpu_us": used["cpu"] / len(answers) * 1e6,
    }


async def tokens(route: Route, clients: int, count: int, pause: float) -> Figures:
    """Measure streams: latency of a token, tokens per second, and CPU time per token.

    Without a pause, the next token always waits to be read, so the latency depends on buffers
    only and is left out.
    """
    fields = {**BODY, "stream": True, "max_tokens": count, "pause": pause}
    answers, used = await run(route, clients, 1, msgspec.json.encode(fields))
    late = []
    for answer in answers:
        for when, data in answer.events():
            late.append(when * 1e6 - msgspec.json.decode(data)["written"] / 1e3)
    if len(late) != clients * count:
        raise RuntimeError(f"{route.name}: {len(late)} of {clients * count} tokens came through")
    figures = {"per_second": len(late) / used["wall"], "cpu_us": used["cpu"] / len(late) * 1e6}
    if pause:
        figures["median_us"] = common.median(late)
        figures["p99_us"] = common.percentile(late, 0.99)
    return figures


async def measure(routes: list[Route], rounds: int) -> dict[str, dict[str, Figures]]:
    """Return medians over the rounds: by measurement, then by route."""
    samples: dict[str, dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))
    for route in routes:
        await requests(route, max(CLIENTS), 50)  # Opens the connections and warms up.
    for number in range(rounds):
        common.note(f"round {number + 1} of {rounds}")
        for clients in CLIENTS:
            for route in routes:
                whole = await requests(route, clients, 1600 // clients)
                paced = await tokens(route, clients, 200, PAUSE)
                flood = await tokens(route, clients, 16000 // clients, 0.0)
                samples[f"request, {clients} clients"][route.name].append(whole)
                samples[f"token every 10 ms, {clients} streams"][route.name].append(paced)
                samples[f"token flood, {clients} streams"][route.name].append(flood)
    return {
        what: {route: _medians(figures) for route, figures in by_route.items()}
        for what, by_route in samples.items()
    }


def _medians(figures: list[Figures]) -> Figures:
    return {name: common.median([f[name] for f in figures]) for name in figures[0]}


def show(result: dict[str, dict[str, Figures]]) -> dict[str, dict[str, Figures]]:
    """Print the tables; return each proxy's cost over the direct route, by measurement."""
    added: dict[str, dict[str, Figures]] = {}
    for what, routes in sorted(result.items()):
        direct = routes["direct"]
        times = [name for name in direct if name.startswith(("median", "p99"))]
        added[what] = {
            route: {name: samples[name] - direct[name] for name in times}
            for route, samples in routes.items()
            if route != "direct"
        }
        head = ["route", *times, *(f"added {name}" for name in times), "a second", "CPU us"]
        rows: list[list[object]] = []
        for route, samples in routes.items():
            more = added[what].get(route, dict.fromkeys(times, NOTHING))
            spent = NOTHING if route == "direct" else samples["cpu_us"]
            here = [samples[name] for name in times]
            rows.append([route, *here, *more.values(), samples["per_second"], spent])
        common.print_table(what, head, rows)
    return added


def main() -> None:
    """Run the command line."""
    given = common.arguments(__doc__).parse_args()
    conditions = common.Conditions()
    uvloop.install()
    with ExitStack() as stack:
        home = stack.enter_context(common.home())
        script = [sys.executable, str(HERE / "upstream.py")]
        direct = stack.enter_context(Started(script, {}, None))
        plain_argv = [sys.executable, "-m", "bench.plain_proxy", direct.word["url"]]
        plain = stack.enter_context(Started(plain_argv, {}, common.ROOT))
        model: dict[str, Any] = {
            "cmd": [*script, "--port", "${PORT}"],
            "concurrencyLimit": max(CLIENTS),
        }
        daemon = stack.enter_context(Daemon(home, {"models": {"upstream": model}}))
        routes = [
            Route("direct", direct.word["url"], None),
            Route("plain aiohttp", plain.word["url"], plain.pid),
            Route("swapd", daemon.url, daemon.pid),
        ]
        result = asyncio.run(measure(routes, given.rounds))
    added = show(result)
    common.print_json("proxy", conditions, {"figures": result, "added": added})


if __name__ == "__main__":
    main()
