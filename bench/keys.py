"""Timing of API key checks: does a response time reveal how close a guess is, or which key?

There is no peer. Each kind of key is sent equally often, in random order; the table has for each
kind the median, and how often its response takes longer than that of the kind it is compared
with: 0.5 means no difference.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import random
import socket
import time
from hashlib import sha256
from typing import Any

from bench import common
from bench.processes import Daemon

KEYS = 32
RIGHT = [f"sk-{number:060d}" for number in range(KEYS)]
COMPARED = {
    "wrong, all but its last byte right": "wrong",
    "wrong, its sum begins with the same two bytes": "wrong",
    "right, the last of 32 keys": "right, the first of 32 keys",
}
"""Pairs of kinds to compare: both are answered alike, with 401 or with 403."""


def kinds() -> dict[str, str]:
    """Return a key of each kind."""
    wanted = sha256(RIGHT[0].encode()).digest()[:2]
    guesses = (f"sk-{number:060d}" for number in itertools.count(10**9))
    near = next(guess for guess in guesses if sha256(guess.encode()).digest()[:2] == wanted)
    return {
        "wrong": f"sk-{7 * 10**40:060d}",
        "wrong, all but its last byte right": RIGHT[0][:-1] + "x",
        "wrong, its sum begins with the same two bytes": near,
        "right, the first of 32 keys": RIGHT[0],
        "right, the last of 32 keys": RIGHT[-1],
    }


def measure(port: int, count: int) -> dict[str, list[float]]:
    """Return the microseconds from a request to its response, by kind."""
    taken: dict[str, list[float]] = {kind: [] for kind in kinds()}
    lines = {
        kind: f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nx-api-key: {key}\r\n\r\n".encode()
        for kind, key in kinds().items()
    }
    order = [kind for kind in lines for _ in range(count)]
    random.Random(1).shuffle(order)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        for kind in order:
            began = time.perf_counter()
            sock.sendall(lines[kind])
            answer = sock.recv(65536)
            taken[kind].append((time.perf_counter() - began) * 1e6)
            status = b" 401 " if kind.startswith("wrong") else b" 403 "
            assert status in answer.partition(b"\r\n")[0], answer
    return taken


def slower(some: list[float], others: list[float]) -> float:
    """Return the share of pairs in which the first value is larger than the second."""
    others = sorted(others)
    return sum(bisect.bisect_left(others, one) for one in some) / len(some) / len(others)


def main() -> None:
    """Run the command line."""
    parser: argparse.ArgumentParser = common.arguments(__doc__, rounds=False)
    parser.add_argument("--count", type=int, default=5000, help="requests with each kind of key")
    given = parser.parse_args()
    conditions = common.Conditions()
    keys = {
        f"k{number}": {"hash": f"sha256:{sha256(key.encode()).hexdigest()}", "models": ["none"]}
        for number, key in enumerate(RIGHT)
    }
    with common.home() as home, Daemon(home, {"models": {}, "keys": keys}) as daemon:
        measure(daemon.port, given.count // 10)
        taken = measure(daemon.port, given.count)
    rows: list[list[object]] = []
    result: dict[str, Any] = {}
    for kind, times in taken.items():
        share = slower(times, taken[COMPARED[kind]]) if kind in COMPARED else None
        rows.append([kind, common.median(times), "–" if share is None else share])
        result[kind] = {"median_us": common.median(times), "slower": share}
    common.print_table("time of an answer by key", ["a key that is", "median us", "slower"], rows)
    common.print_json("keys", conditions, result)


if __name__ == "__main__":
    main()
