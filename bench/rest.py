"""swapd at rest: its memory, and its wake-ups without cause; the same for an idle worker.

Linux only: it reads /proc. There is no peer in the package index that supervises workers, so
the targets are printed with the figures: 50 MB or less, and no wake-ups.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil

from bench import common
from bench.client import Connection
from bench.processes import Daemon

AIM_MB = 50.0
REQUESTS = 1000
WAITS = {
    "do_epoll_wait": "event loop",
    "ep_poll": "event loop",
    "futex_do_wait": "lock",
    "futex_wait_queue": "lock",
    "futex_wait_queue_me": "lock",
    "do_wait": "waits for a child",
    "kernel_waitid": "waits for a child",
    "pipe_read": "reads a pipe",
    "anon_pipe_read": "reads a pipe",
    "hrtimer_nanosleep": "sleeps by the clock",
}
"""Activity of a thread that waits in one of these functions of the kernel."""


@dataclass(frozen=True)
class Thread:
    """State of a thread at one moment."""

    what: str
    wakes: int
    """Voluntary context switches so far, one for each wake-up."""


def threads(pid: int) -> dict[str, Thread]:
    """Return all threads of a process by thread id."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        waits = (task / "wchan").read_text()
        what = WAITS.get(waits, waits if waits not in ("", "0") else "running")
        name = fields["Name"].strip()
        main = "main, " if task.name == str(pid) else ""
        found[task.name] = Thread(f"{main}{name}: {what}", int(fields["voluntary_ctxt_switches"]))
    return found


def memory(pid: int) -> dict[str, float]:
    """Return megabytes: PSS, which divides shared pages among processes, and USS."""
    full = psutil.Process(pid).memory_full_info()
    return {name: getattr(full, name) / 1e6 for name in ("pss", "rss", "uss")}


def watch(pids: dict[str, int], seconds: float) -> dict[str, dict[str, Any]]:
    """Return the activity of some processes while no requests arrive, by their names."""
    before = {name: (threads(pid), common.cpu_seconds(pid)) for name, pid in pids.items()}
    began = time.perf_counter()
    time.sleep(seconds)
    span = time.perf_counter() - began
    result: dict[str, dict[str, Any]] = {}
    for name, pid in pids.items():
        old, cpu = before[name]
        wakes = {
            f"{number} {thread.what}": (thread.wakes - old[number].wakes) / span
            for number, thread in sorted(threads(pid).items(), key=lambda item: int(item[0]))
            if number in old
        }
        result[name] = {
            "wakes_a_second": sum(wakes.values()),
            "cpu_us_a_second": (common.cpu_seconds(pid) - cpu) / span * 1e6,
            "threads": wakes,
        }
    return result


def guardian(pid: int) -> dict[str, int]:
    """Return swapd's guardian shell, if it has one."""
    shells = [child for child in psutil.Process(pid).children() if "sh" in child.name()]
    return {"guardian": shells[0].pid} if shells else {}


async def send(url: str, times: int) -> None:
    """Send so many sequential short requests."""
    fields: dict[str, Any] = {"model": "bard", "max_tokens": 1, "stream": True}
    fields["messages"] = [{"role": "user", "content": "Who goes there?"}]
    connection = await Connection.open(url)
    for _ in range(times):
        (await connection.send("/v1/chat/completions", msgspec.json.encode(fields))).checked()
    connection.close()


async def worker_pid(url: str) -> int:
    """Return the process of the only worker, from `/running`."""
    connection = await Connection.open(url)
    answer = (await connection.send("/running")).checked()
    connection.close()
    return int(msgspec.json.decode(answer.body)["running"][0]["pid"])


def measure(daemon: Daemon, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Memory by moment, and wake-ups by moment and process."""
    held, wakes = {}, {}
    common.settle(2)
    held["after start"] = memory(daemon.pid)
    wakes["nothing loaded"] = watch({"swapd": daemon.pid, **guardian(daemon.pid)}, seconds)
    asyncio.run(send(daemon.url, 1))
    worker = asyncio.run(worker_pid(daemon.url))
    held["one model loaded"] = memory(daemon.pid)
    asyncio.run(send(daemon.url, REQUESTS))
    held[f"after {REQUESTS} requests"] = memory(daemon.pid)
    held["the worker (demo model)"] = memory(worker)
    common.settle(2)
    wakes["idle model loaded"] = watch({"swapd": daemon.pid, "worker": worker}, seconds)
    return held, wakes


def show(held: dict[str, Any], wakes: dict[str, Any]) -> None:
    """Print the tables."""
    rows = [[moment, *figures.values()] for moment, figures in held.items()]
    common.print_table(f"memory of swapd (aim: {AIM_MB:g})", ["MB", "PSS", "RSS", "USS"], rows)
    lines: list[list[object]] = []
    for moment, processes in wakes.items():
        for name, activity in processes.items():
            figures = [activity["wakes_a_second"], activity["cpu_us_a_second"]]
            lines.append([f"{moment}: {name}", *figures])
            lines += [
                [f"    {thread}", often, ""]
                for thread, often in activity["threads"].items()
                if often
            ]
    head = ["at rest (aim: none)", "wakes a second", "CPU us a second"]
    common.print_table("wake-ups", head, lines)


def main() -> None:
    """Run the command line."""
    parser = common.arguments(__doc__, rounds=False)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to watch")
    given = parser.parse_args()
    if sys.platform != "linux":
        common.give_up("this one reads /proc, which only Linux has")
    conditions = common.Conditions()
    cmd = f"${{worker}} --model '{common.BARD}' --parallel 1 --threads {common.THREADS}"
    with common.home() as home, Daemon(home, {"models": {"bard": {"cmd": cmd}}}) as daemon:
        held, wakes = measure(daemon, given.seconds)
    show(held, wakes)
    common.print_json("rest", conditions, {"megabytes": held, "wakes": wakes})


if __name__ == "__main__":
    main()
