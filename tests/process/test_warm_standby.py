"""The warm standby: a real process, which becomes the worker of a demo model."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from swapd.process.spawn import SpawnContext, WarmStandby
from swapd.process.worker_process import WorkerProcess
from tests.daemon import ROOT, alive, eventually
from tests.process.conftest import Listener
from tests.specs import model_spec

LOG = logging.Logger("test")
SERVE = (sys.executable, "-m", "workers.serve")
STANDBY = (sys.executable, "-m", "workers.spare")
BARD = model_spec(
    "bard", (*SERVE, "--model", str(ROOT / "demo/bard.gguf"), "--port", "0", "--parallel", "3")
)


@pytest.fixture
def standby(place: SpawnContext) -> Iterator[WarmStandby]:
    standby = WarmStandby(SERVE, STANDBY, place)
    yield standby
    standby.close()


def _pid(standby: WarmStandby) -> int:
    assert standby._waiting is not None
    return standby._waiting.process.pid


async def _stop(process: WorkerProcess, listener: Listener) -> str:
    process.stop()
    return await listener.end()


async def test_it_becomes_the_worker_of_the_given_command(
    place: SpawnContext, standby: WarmStandby
) -> None:
    standby.prepare()
    pid = _pid(standby)
    standby.prepare()
    assert _pid(standby) == pid
    listener = Listener()
    process = WorkerProcess(1, BARD, place, listener, LOG, standby)
    assert process.pid == pid
    message = await listener.message()
    assert (message.ready, message.slots) == (True, 3)
    answer = await asyncio.to_thread(httpx.get, f"{process.base_url}/v1/models")
    assert answer.json()["data"][0]["id"] == "bard"
    assert await _stop(process, listener) == "the worker ended with exit status 0"
    assert not alive(pid)


async def test_it_stays_when_a_model_cannot_use_it(
    place: SpawnContext, standby: WarmStandby
) -> None:
    """A model with its own environment, and an external command."""
    standby.prepare()
    listener = Listener()
    with_env = model_spec("bard", BARD.launch.argv, env=(("X", "1"),))
    process = WorkerProcess(1, with_env, place, listener, LOG, standby)
    assert process.pid != _pid(standby)
    assert (await listener.message()).ready
    await _stop(process, listener)
    assert standby.take(model_spec("x", ("sleep", "1"), builtin=False), ("sleep", "1")) is None
    assert alive(_pid(standby))


async def test_a_process_that_has_died_is_not_taken(
    place: SpawnContext, standby: WarmStandby
) -> None:
    standby.prepare()
    pid = _pid(standby)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))
    listener = Listener()
    process = WorkerProcess(1, BARD, place, listener, LOG, standby)
    assert process.pid != pid
    assert (await listener.message()).ready
    await _stop(process, listener)


async def test_a_process_killed_while_it_is_taken_is_replaced(
    place: SpawnContext, standby: WarmStandby
) -> None:
    """The process is stopped first, so that it is alive when taken and dies before its message."""
    standby.prepare()
    pid = _pid(standby)
    os.kill(pid, signal.SIGSTOP)
    listener = Listener()
    process = WorkerProcess(1, BARD, place, listener, LOG, standby)
    assert process.pid == pid
    os.kill(pid, signal.SIGKILL)
    assert (await listener.message()).ready
    assert process.pid != pid
    assert listener.ends.empty()
    await _stop(process, listener)


def test_a_stopped_process_can_be_dismissed(standby: WarmStandby) -> None:
    standby.prepare()
    os.kill(_pid(standby), signal.SIGSTOP)
    standby.close()


async def test_wrong_arguments_are_reported(place: SpawnContext, standby: WarmStandby) -> None:
    standby.prepare()
    listener = Listener()
    wrong = model_spec("bard", (*SERVE, "--model", "no.gguf", "--prot", "0"))
    WorkerProcess(1, wrong, place, listener, LOG, standby)
    assert "--port" in await listener.end()


def test_dismissal_leaves_no_process_and_no_descriptors(standby: WarmStandby) -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    standby.prepare()
    pid = _pid(standby)
    standby.close()
    assert not alive(pid)
    assert len(list(Path("/dev/fd").iterdir())) == before
