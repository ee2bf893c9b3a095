"""What a model notices of faulty ones beside it: the latency of its requests with and without them.

There is no peer for this; the aim stands beside the figures: within twice the 99th percentile.
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
FOREIGN = f"{FAKE} --port ${{PORT}} --silent --outlive-stdin"
BETWEEN = 0.02
"""Seconds between two requests for the faulty model."""


def faulty(home: Path) -> dict[str, dict[str, Any]]:
    """Models with one fault each."""
    told = home / "told"
    os.mkfifo(told)
    return {
        "crashes at start": {"cmd": f"{FOREIGN} --fail broken"},
        "exits after ten requests": {"cmd": f"{FOREIGN} --exit-after 10"},
        "leaks to its limit": {"cmd": f"{FOREIGN} --leak 20", "limits": {"memory": "300 MiB"}},
        "deaf to SIGTERM": {"cmd": f"{FOREIGN} --deaf", "stop_grace": 0.3, "ttl": 0.1},
        "its port is a stranger's": {
            "cmd": f"sh -c 'echo $1 > {told}; exec sleep 600' -- ${{PORT}}"
        },
    }


def answer_for_strangers(told: Path) -> None:
    """Answers 200 on every port that comes out of the FIFO, until it says 0."""
    while True:
        port = int(told.read_text())
        if port == 0:
            return
        with socket.create_server(("127.0.0.1", port)) as server:
            # It asks once; the answer is all that it gets.
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                time.sleep(0.2)


async def disturb(url: str, model: str) -> dict[str, int]:
    """Ask for a faulty model until standard input ends; what came of it, by status."""
    outcome: dict[str, int] = {}
    while not select.select([0], [], [], 0)[0]:
        with contextlib.suppress(ConnectionError):
            connection = await Connection.open(url)
            answer = await connection.ask("/v1/chat/completions", body(model))
            name = str(answer.status)
            outcome[name] = outcome.get(name, 0) + 1
            connection.close()
        await asyncio.sleep(BETWEEN)
    return outcome


@contextlib.contextmanager
def disturbed(url: str, model: str) -> Iterator[dict[str, int]]:
    """Meanwhile somebody asks for a faulty model; afterwards it is known what came of that.

    In a process of its own, which lets others go first: what it computes is nobody's fault.
    """
    outcome: dict[str, int] = {}
    argv = ["nice", "-n", "19", sys.executable, "-m", "bench.beside"]
    with subprocess.Popen(
        [*argv, "--disturb", url, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield outcome
        finally:
            told, _ = process.communicate()
            outcome.update(msgspec.json.decode(told))


async def latencies(url: str, seconds: float) -> list[float]:
    """Of requests for the good model, one after the other, for so long."""
    connection = await Connection.open(url)
    taken, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        answer = (await connection.ask("/v1/chat/completions", body("bard"))).checked()
        taken.append(answer.seconds * 1e3)
    connection.close()
    return taken


def main() -> None:
    """The command line."""
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
            thread = threading.Thread(target=answer_for_strangers, args=(home / "told",))
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
            (home / "told").write_text("0")
            thread.join()
    head = ["a model that", "p50 alone", "beside", "p99 alone", "beside", f"aim {AIM:g}", "answers"]
    common.print_table("latency of the other model, ms", head, rows)
    common.print_json("beside", conditions, result)


if __name__ == "__main__":
    main()
