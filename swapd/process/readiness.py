"""Readiness probe of external workers, which do not report readiness themselves."""

from __future__ import annotations

import asyncio

import aiohttp
from yarl import URL

from swapd.process.ports import other_port_owner
from swapd.process.worker_process import WorkerProcess
from swapd.system.aio import pause

FIRST_INTERVAL = 0.005
"""Seconds between the first two probes."""
GROWTH = 1.5
"""Factor from one interval to the next."""
MAX_INTERVAL = 0.25
"""Seconds between two probes, at most."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
PROBE_TIMEOUT = 5.0
"""Seconds until a probe counts as failed."""


class PortOwnerError(Exception):
    """The worker's port is held by another process."""


async def wait_until_ready(process: WorkerProcess, session: aiohttp.ClientSession) -> None:
    """Return once the worker answers 200 at its check endpoint; probe at growing intervals.

    Raises PortOwnerError when the port is held by a process outside the worker's process tree.
    The caller cancels the probe when the worker has ended.
    """
    if not process.spec.launch.check_endpoint:
        return
    interval = FIRST_INTERVAL
    while not await answers(session, process, PROBE_TIMEOUT):
        await pause(interval)
        interval = min(interval * GROWTH, MAX_INTERVAL)
    if "${PORT}" in process.spec.launch.proxy and URL(process.base_url).host in LOOPBACK:
        # The search through the processes takes milliseconds: too long for the event loop.
        loop = asyncio.get_running_loop()
        owner = await loop.run_in_executor(None, other_port_owner, process.port, process.pid)
        if owner:
            raise PortOwnerError(f"port {process.port} is held by {owner}")


async def answers(session: aiohttp.ClientSession, process: WorkerProcess, timeout: float) -> bool:
    """Return True if the worker answers 200 at its check endpoint within `timeout` seconds."""
    url = process.base_url + "/" + process.spec.launch.check_endpoint.lstrip("/")
    limit = aiohttp.ClientTimeout(total=timeout)
    try:
        async with session.get(url, timeout=limit, allow_redirects=False) as response:
            return response.status == 200
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
        return False
