"""Readiness of a foreign worker: asked for, because it does not tell."""

from __future__ import annotations

import asyncio

import aiohttp
from yarl import URL

from swapd.process.ports import foreign_port_owner
from swapd.process.worker_process import WorkerProcess
from swapd.system.aio import pause

FIRST_PAUSE = 0.005
GROWTH = 1.5
LONGEST_PAUSE = 0.25
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
ANSWER_WITHIN = 5.0


class PortOwnerError(Exception):
    """Somebody else answers on the worker's port."""


async def wait_until_ready(process: WorkerProcess, session: aiohttp.ClientSession) -> None:
    """Return once the worker answers 200 at its check endpoint; ask at growing intervals.

    Raises StrangerError when the port turns out to be held by a process that is not our child's.
    The caller cancels it when the worker has ended.
    """
    if not process.spec.launch.check_endpoint:
        return
    interval = FIRST_PAUSE
    while not await answers(session, process, ANSWER_WITHIN):
        await pause(interval)
        interval = min(interval * GROWTH, LONGEST_PAUSE)
    if "${PORT}" in process.spec.launch.proxy and URL(process.base_url).host in LOOPBACK:
        # Looking through processes takes milliseconds, in which others are not to wait.
        loop = asyncio.get_running_loop()
        stranger = await loop.run_in_executor(None, foreign_port_owner, process.port, process.pid)
        if stranger:
            raise PortOwnerError(f"port {process.port} is held by {stranger}")


async def answers(session: aiohttp.ClientSession, process: WorkerProcess, within: float) -> bool:
    """Whether a worker answers 200 at its check endpoint within so many seconds."""
    url = process.base_url + "/" + process.spec.launch.check_endpoint.lstrip("/")
    limit = aiohttp.ClientTimeout(total=within)
    try:
        async with session.get(url, timeout=limit, allow_redirects=False) as response:
            return response.status == 200
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
        return False
