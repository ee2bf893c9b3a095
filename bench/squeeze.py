"""Random swaps of eight models under a kernel memory limit for the whole process tree.

swapd and its workers run in a control group, of version 2 or 1, whichever can be created: beyond
its limit the kernel kills processes. Requests go to random models of several sizes, with prompts
of several lengths. The figures are kills, the peak against the limit, and, for each start of a
model that ran before, the reserved memory and the memory then held.
"""

from __future__ import annotations

import asyncio
import os
import random
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from bench import common, generate
from bench.client import Connection
from bench.processes import Daemon
from swapd.process.memory import bytes_held

MIB = 2**20
SIZES = (20, 30, 40, 60)
CGROUP = Path("/sys/fs/cgroup")


class Group:
    """A control group with a limit on memory."""

    def __init__(self, limit: int) -> None:
        """Create the group. Raises OSError when none can be created."""
        second = (CGROUP / "cgroup.controllers").exists()
        self.version = 2 if second else 1
        self.folder = (CGROUP if second else CGROUP / "memory") / f"swapd-bench-{os.getpid()}"
        self.folder.mkdir()
        name = "memory.max" if second else "memory.limit_in_bytes"
        try:
            (self.folder / name).write_text(str(limit))
        except OSError:
            self.folder.rmdir()
            raise

    def enter(self) -> None:
        """Move this process and its later children into the group."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def leave(self) -> None:
        """Move this process back to the root group and remove the group."""
        (self.folder.parent / "cgroup.procs").write_text(str(os.getpid()))
        self.folder.rmdir()

    def kills(self) -> int:
        """Return the number of OOM kills in the group."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        lines = (self.folder / name).read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

    def most(self) -> int:
        """Return the peak of used bytes, page cache included."""
        name = "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"
        return int((self.folder / name).read_text())


@contextmanager
def group(limit: int) -> Iterator[Group]:
    """Everything inside runs under the limit."""
    try:
        made = Group(limit)
    except OSError as error:
        common.give_up(f"no control group can be made here: {error.strerror}")
    made.enter()
    try:
        yield made
    finally:
        made.leave()


def models() -> dict[str, Path]:
    """Eight files, two of each size."""
    return {f"m{size}-{seed}": generate.model(size, seed) for size in SIZES for seed in (1, 2)}


def configuration(budget: int) -> dict[str, Any]:
    """Different contexts, so that caches differ too."""
    entries = {
        name: {"cmd": f"${{worker}} --model {path} --ctx-size {1024 * (1 + i % 4)} --parallel 1"}
        for i, (name, path) in enumerate(models().items())
    }
    return {
        "memory": {"budget": f"{budget} MiB", "interval": 5},
        "warm_standby": False,
        "models": entries,
    }


def running(url: str) -> list[dict[str, Any]]:
    """Return the workers from `/running`."""
    with urllib.request.urlopen(f"{url}/running") as answer:
        found: list[dict[str, Any]] = msgspec.json.decode(answer.read())["running"]
    return found


async def swap(daemon: Daemon, requests: int, seed: int) -> tuple[int, list[float]]:
    """Return the failed requests and, for each model that ran before, reserve over memory."""
    rng, failed, ratios, seen = random.Random(seed), 0, [], set[str]()
    names = list(models())
    for number in range(requests):
        name = rng.choice(names)
        prompt = "who goes there? " * rng.choice((4, 40, 150))
        body = {"model": name, "prompt": prompt, "max_tokens": 4, "stream": True}
        connection = await Connection.open(daemon.url)
        answer = await connection.send("/v1/completions", msgspec.json.encode(body))
        connection.close()
        failed += answer.status != 200
        if name in seen:
            (worker,) = [w for w in running(daemon.url) if w["model"] == name]
            ratios.append(worker["bytes"] / bytes_held(worker["pid"]))
        if number >= requests // 2:
            seen.add(name)
    return failed, ratios


def main() -> None:
    """Run the command line."""
    parser = common.arguments(__doc__, rounds=False)
    parser.add_argument("--requests", type=int, default=330, help="some 220 of them swap")
    parser.add_argument("--budget", type=int, default=300, metavar="MIB")
    parser.add_argument("--limit", type=int, default=450, metavar="MIB", help="of the whole tree")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    config, conditions = configuration(given.budget), common.Conditions()
    with group(given.limit * MIB) as limited, common.home() as home, Daemon(home, config) as daemon:
        failed, ratios = asyncio.run(swap(daemon, given.requests, given.seed))
        starts = daemon.log().count(": started as pid")
        result = {
            "control_group": limited.version,
            "swaps": starts,
            "failed": failed,
            "kernel_kills": limited.kills(),
            "most_mib": limited.most() / MIB,
            "need_by_held": {
                "least": min(ratios),
                "median": common.median(ratios),
                "most": max(ratios),
                "within_10_percent": sum(0.9 <= r <= 1.1 for r in ratios) / len(ratios),
            },
        }
    common.print_table("", ["", "value"], [[k, str(v)] for k, v in result.items()])
    common.print_json("squeeze", conditions, result)


if __name__ == "__main__":
    main()
