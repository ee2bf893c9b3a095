"""Effect of faulty models on another model: the latency of its requests with and without them.

There is no peer for this; the target is printed with the figures: twice the 99th percentile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench import common
from bench.client import Connection
from bench.lasting import body
from bench.processes import Daemon

AIM = 2.0
FAKE = f"{sys.executable} -m tests.fake_worker --name faulty"
EXTERNAL = f"{FAKE} --port ${{PORT}} --silent --outlive-stdin"
BETWEEN = 0.02
"""Seconds between two requests for the faulty model."""


def faulty(home: Path) -> dict[str, dict[str, Any]]:
    """Return models with one fault each."""
    fifo = home / "port"
    os.mkfifo(fifo)
    return {
        "crashes at start": {"cmd": f"{EXTERNAL} --fail broken"},
        "exits after ten requests": {"cmd": f"{EXTERNAL} --exit-after 10"},
        "leaks to its limit": {"cmd": f"{EXTERNAL} --leak 20", "limits": {"memory": "300 MiB"}},
        "deaf to SIGTERM": {"cmd": f"{EXTERNAL} --deaf", "stop_grace": 0.3, "ttl": 0.1},
        "its port is taken": {"cmd": f"sh -c 'echo $1 > {fifo}; exec sleep 600' -- ${{PORT}}"},
    }


def answer_on_ports(fifo: Path) -> None:
    """Answer 200 on every port read from the FIFO, until the port is 0."""
    while True:
        port = int(fifo.read_text())
        if port == 0:
            return
        with socket.create_server(("127.0.0.1", port)) as server:
            # One probe, one response.
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                time.sleep(0.2)


async def disturb(url: str, model: str) -> dict[str, int]:
    """Request a faulty model until standard input ends; return the responses by status."""
    outcome: dict[str, int] = {}
    while not select.select([0], [], [], 0)[0]:
        with contextlib.suppress(ConnectionError):
            connection = await Connection.open(url)
            answer = await connection.send("/v1/chat/completions", body(model))
            name = str(answer.status)
            outcome[name] = outcome.get(name, 0) + 1
            connection.close()
        await asyncio.sleep(BETWEEN)
    return outcome


@contextlib.contextmanager
def disturbed(url: str, model: str) -> Iterator[dict[str, int]]:
    """Request a faulty model in the background; afterwards the dict holds the responses by status.

    The requests come from a process with low priority, so that its CPU time does not disturb.
    """
    outcome: dict[str, int] = {}
    argv = ["nice", "-n", "19", sys.executable, "-m", "bench.beside"]
    with subprocess.Popen(
        [*argv, "--disturb", url, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield outcome
        finally:
            output, _ = process.communicate()
            outcome.update(msgspec.json.decode(output))


async def latencies(url: str, seconds: float) -> list[float]:
    """Return the latencies, in ms, of sequential requests for the good model during `seconds`."""
    connection = await Connection.open(url)
    taken, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        answer = (await connection.send("/v1/chat/completions", body("bard"))).checked()
        taken.append(answer.seconds * 1e3)
    connection.close()
    return taken


def main() -> None:
    """Run the command line."""
    parser = common.arguments(__doc__, rounds=False)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each fault")
    parser.add_argument("--disturb", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.disturb:
        print(msgspec.json.encode(asyncio.run(disturb(*given.disturb))).decode())
        return
    conditions = common.Conditions()
    rows: list[list[object]] = []
    result: dict[str, Any] = {}
    with common.home() as home:
        models = faulty(home)
        good = f"${{worker}} --model '{common.BARD}' --parallel 1 --threads 1"
        config = {"models": {**models, "bard": {"cmd": good}}}
        with Daemon(home, config) as daemon:
            thread = threading.Thread(target=answer_on_ports, args=(home / "port",))
            thread.start()
            asyncio.run(latencies(daemon.url, 1.0))
            for name in models:
                common.note(name)
                alone = asyncio.run(latencies(daemon.url, given.seconds / 2))
                with disturbed(daemon.url, name) as outcome:
                    beside = asyncio.run(latencies(daemon.url, given.seconds))
                p99 = [common.percentile(some, 0.99) for some in (alone, beside)]
                p50 = [common.median(some) for some in (alone, beside)]
                rows.append([name, *p50, *p99, p99[1] / p99[0], outcome])
                result[name] = {"p50": p50, "p99": p99, "outcome": outcome}
            (home / "port").write_text("0")
            thread.join()
    head = ["a model that", "p50 alone", "beside", "p99 alone", "beside", f"aim {AIM:g}", "answers"]
    common.print_table("latency of the other model, ms", head, rows)
    common.print_json("beside", conditions, result)


if __name__ == "__main__":
    main()
