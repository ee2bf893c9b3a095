"""What swapd adds to a request and to a streamed token, against asking the worker directly.

The worker is an upstream of prepared bytes. In every round each way is measured in turn:
directly, through a plain aiohttp proxy, and through swapd.
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
class Way:
    """One way to the upstream."""

    name: str
    url: str
    pid: int | None
    """Of the process whose CPU time counts; None on the direct way."""

    def cpu(self) -> float:
        """Seconds of CPU its process has used so far."""
        return 0.0 if self.pid is None else common.cpu_seconds(self.pid)


async def run(way: Way, clients: int, each: int, body: bytes) -> tuple[list[Answer], Figures]:
    """Every client asks `each` times, one request after the other."""
    connections = [await Connection.open(way.url) for _ in range(clients)]

    async def client(connection: Connection) -> list[Answer]:
        return [(await connection.ask("/v1/chat/completions", body)).checked() for _ in range(each)]

    cpu, began = way.cpu(), time.perf_counter()
    answers = await asyncio.gather(*map(client, connections))
    wall, cpu = time.perf_counter() - began, way.cpu() - cpu
    for connection in connections:
        connection.close()
    return [a for some in answers for a in some], {"wall": wall, "cpu": cpu}


async def requests(way: Way, clients: int, each: int) -> Figures:
    """Whole answers: latency, rate, and CPU of a request."""
    answers, used = await run(way, clients, each, msgspec.json.encode(BODY))
    times = [a.seconds * 1e3 for a in answers]
    return {
        "median_ms": common.median(times),
        "p99_ms": common.percentile(times, 0.99),
        "per_second": len(answers) / used["wall"],
        "cpu_us": used["cpu"] / len(answers) * 1e6,
    }


async def tokens(way: Way, clients: int, count: int, pause: float) -> Figures:
    """Streams: how long a token is under way, how many come through, and CPU of a token.

    Without a pause there is always one more token waiting to be read, so how long it is under
    way tells of buffers only, and is left out.
    """
    fields = {**BODY, "stream": True, "max_tokens": count, "pause": pause}
    answers, used = await run(way, clients, 1, msgspec.json.encode(fields))
    late = []
    for answer in answers:
        for when, data in answer.events():
            late.append(when * 1e6 - msgspec.json.decode(data)["written"] / 1e3)
    if len(late) != clients * count:
        raise RuntimeError(f"{way.name}: {len(late)} of {clients * count} tokens came through")
    figures = {"per_second": len(late) / used["wall"], "cpu_us": used["cpu"] / len(late) * 1e6}
    if pause:
        figures["median_us"] = common.median(late)
        figures["p99_us"] = common.percentile(late, 0.99)
    return figures


async def measure(ways: list[Way], rounds: int) -> dict[str, dict[str, Figures]]:
    """Medians over the rounds: by measurement, then by way."""
    seen: dict[str, dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))
    for way in ways:
        await requests(way, max(CLIENTS), 50)  # the first ones make connections and warm up
    for number in range(rounds):
        common.note(f"round {number + 1} of {rounds}")
        for clients in CLIENTS:
            for way in ways:
                whole = await requests(way, clients, 1600 // clients)
                paced = await tokens(way, clients, 200, PAUSE)
                flood = await tokens(way, clients, 16000 // clients, 0.0)
                seen[f"request, {clients} clients"][way.name].append(whole)
                seen[f"token every 10 ms, {clients} streams"][way.name].append(paced)
                seen[f"token flood, {clients} streams"][way.name].append(flood)
    return {
        what: {way: _medians(figures) for way, figures in by_way.items()}
        for what, by_way in seen.items()
    }


def _medians(figures: list[Figures]) -> Figures:
    return {name: common.median([f[name] for f in figures]) for name in figures[0]}


def show(result: dict[str, dict[str, Figures]]) -> dict[str, dict[str, Figures]]:
    """Prints the tables; what each proxy adds to the direct way, by measurement."""
    added: dict[str, dict[str, Figures]] = {}
    for what, ways in sorted(result.items()):
        direct = ways["direct"]
        times = [name for name in direct if name.startswith(("median", "p99"))]
        added[what] = {
            way: {name: seen[name] - direct[name] for name in times}
            for way, seen in ways.items()
            if way != "direct"
        }
        head = ["way", *times, *(f"added {name}" for name in times), "a second", "CPU us"]
        rows: list[list[object]] = []
        for way, seen in ways.items():
            more = added[what].get(way, dict.fromkeys(times, NOTHING))
            spent = NOTHING if way == "direct" else seen["cpu_us"]
            here = [seen[name] for name in times]
            rows.append([way, *here, *more.values(), seen["per_second"], spent])
        common.print_table(what, head, rows)
    return added


def main() -> None:
    """The command line."""
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
        ways = [
            Way("direct", direct.word["url"], None),
            Way("plain aiohttp", plain.word["url"], plain.pid),
            Way("swapd", daemon.url, daemon.pid),
        ]
        result = asyncio.run(measure(ways, given.rounds))
    added = show(result)
    common.print_json("proxy", conditions, {"figures": result, "added": added})


if __name__ == "__main__":
    main()
