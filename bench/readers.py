"""Many clients, some of which read a byte per second: memory, and latency of the others.

The long responses come from `tests.fake_worker`, which blocks on a slow reader as a real worker
does; the short ones are prepared bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import uvloop

from bench import common
from bench.client import Connection
from bench.processes import Daemon

ANSWER_WORDS = 400_000
QUIET = 0.1
"""Seconds of computing in a second, below which there is nothing going on."""
SHORT = msgspec.json.encode({"model": "quick", "messages": [], "max_tokens": 8})
LONG = msgspec.json.encode({"model": "long", "stream": True, "max_tokens": ANSWER_WORDS})


async def busy(url: str, clients: int, seconds: float) -> dict[str, float]:
    """Run so many clients, each with one request after the other."""
    connections = [await Connection.open(url) for _ in range(clients)]
    end = time.perf_counter() + seconds
    took: list[float] = []

    async def client(connection: Connection) -> None:
        while time.perf_counter() < end:
            answer = (await connection.send("/v1/chat/completions", SHORT)).checked()
            took.append(answer.ended - answer.began)

    await asyncio.gather(*map(client, connections))
    for connection in connections:
        connection.close()
    took.sort()
    return {
        "requests": len(took),
        "p50_ms": common.percentile(took, 0.5) * 1000,
        "p99_ms": common.percentile(took, 0.99) * 1000,
        "worst_ms": took[-1] * 1000,
    }


class Sipper:
    """Client that reads one byte per second."""

    def __init__(self, port: int) -> None:
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._sock.setblocking(False)
        self._port = port

    async def sip(self) -> None:
        """Read until the connection is closed or the task cancelled."""
        loop = asyncio.get_running_loop()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(LONG)}"
        )
        with contextlib.closing(self._sock), contextlib.suppress(ConnectionError):
            await loop.sock_connect(self._sock, ("127.0.0.1", self._port))
            await loop.sock_sendall(self._sock, head.encode() + b"\r\n\r\n" + LONG)
            while await loop.sock_recv(self._sock, 1):  # noqa: ASYNC110  # that is the point
                await asyncio.sleep(1)


async def measure(daemon: Daemon, clients: int, slow: int, seconds: float) -> dict[str, Any]:
    """Measure the fast clients alone, then together with the slow ones, then after these."""
    process = psutil.Process(daemon.pid)
    await busy(daemon.url, 1, 1)
    result: dict[str, Any] = {"alone": await busy(daemon.url, clients - slow, seconds)}
    await asyncio.sleep(1)
    result["before"] = _held(process)
    tasks = [asyncio.create_task(Sipper(daemon.port).sip()) for _ in range(slow)]
    await _settled(process)
    result["beside"] = await busy(daemon.url, clients - slow, seconds)
    result["during"] = _held(process)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(5)  # after three, it gives back what is free
    result["after"] = _held(process)
    return result


async def _settled(process: psutil.Process) -> None:
    """Wait until all buffers to the slow clients are full and no process computes."""
    before = -1.0
    for _ in range(60):
        await asyncio.sleep(1)
        used = sum(common.cpu_seconds(p.pid) for p in [process, *process.children()])
        if used - before < QUIET:
            return
        before = used


def _held(process: psutil.Process) -> dict[str, float]:
    return {"mb": process.memory_info().rss / 2**20, "descriptors": process.num_fds()}


def main() -> int:
    """Run the whole benchmark."""
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--clients", type=int, default=512)
    parser.add_argument("--slow", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    conditions = common.Conditions()
    here = Path(__file__).parent
    models = {
        "quick": {
            "cmd": [sys.executable, str(here / "upstream.py"), "--port", "${PORT}"],
            "concurrencyLimit": options.clients,
        },
        "long": {
            "cmd": f"{sys.executable} -m tests.fake_worker --port ${{PORT}} --words {ANSWER_WORDS}"
            " --silent --outlive-stdin",
            "concurrencyLimit": options.clients,
        },
    }
    with (
        common.home() as folder,
        Daemon(
            folder, {"warm_standby": False, "max_queue": 1024, "max_queued": 0, "models": models}
        ) as daemon,
    ):
        result = uvloop.run(measure(daemon, options.clients, options.slow, options.seconds))
    rows = [[name, *result[name].values()] for name in ("alone", "beside")]
    common.print_table("the others", ["", "requests", "p50 ms", "p99 ms", "worst ms"], rows)
    rows = [[name, *result[name].values()] for name in ("before", "during", "after")]
    common.print_table("swapd", ["", "MB", "descriptors"], rows)
    common.print_json("readers", conditions, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
