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
from tests.process.conftest import Heard
from tests.specs import model_spec

LOG = logging.Logger("test")
SERVE = (sys.executable, "-m", "workers.serve")
SPARE = (sys.executable, "-m", "workers.spare")
BARD = model_spec(
    "bard", (*SERVE, "--model", str(ROOT / "demo/bard.gguf"), "--port", "0", "--parallel", "3")
)


@pytest.fixture
def spare(place: SpawnContext) -> Iterator[WarmStandby]:
    spare = WarmStandby(SERVE, SPARE, place)
    yield spare
    spare.dismiss()


def _pid(spare: WarmStandby) -> int:
    assert spare._waiting is not None
    return spare._waiting.process.pid


async def _stop(process: WorkerProcess, heard: Heard) -> str:
    process.stop()
    return await heard.end()


async def test_it_becomes_the_worker_it_is_told_to_be(
    place: SpawnContext, spare: WarmStandby
) -> None:
    spare.prepare()
    pid = _pid(spare)
    spare.prepare()
    assert _pid(spare) == pid
    heard = Heard()
    process = WorkerProcess(1, BARD, place, heard, LOG, spare)
    assert process.pid == pid
    word = await heard.word()
    assert (word.ready, word.slots) == (True, 3)
    answer = await asyncio.to_thread(httpx.get, f"{process.base_url}/v1/models")
    assert answer.json()["data"][0]["id"] == "bard"
    assert await _stop(process, heard) == "the worker ended with exit status 0"
    assert not alive(pid)


async def test_one_that_a_model_cannot_use_stays(place: SpawnContext, spare: WarmStandby) -> None:
    """A model with its own environment, and an external command."""
    spare.prepare()
    heard = Heard()
    own_env = model_spec("bard", BARD.launch.argv, env=(("X", "1"),))
    process = WorkerProcess(1, own_env, place, heard, LOG, spare)
    assert process.pid != _pid(spare)
    assert (await heard.word()).ready
    await _stop(process, heard)
    assert spare.take(model_spec("x", ("sleep", "1"), builtin=False), ("sleep", "1")) is None
    assert alive(_pid(spare))


async def test_one_that_died_meanwhile_is_not_taken(
    place: SpawnContext, spare: WarmStandby
) -> None:
    spare.prepare()
    pid = _pid(spare)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))
    heard = Heard()
    process = WorkerProcess(1, BARD, place, heard, LOG, spare)
    assert process.pid != pid
    assert (await heard.word()).ready
    await _stop(process, heard)


async def test_one_that_is_killed_at_that_moment_is_replaced(
    place: SpawnContext, spare: WarmStandby
) -> None:
    """The process is stopped first, so that it is alive when taken and dies before its message."""
    spare.prepare()
    pid = _pid(spare)
    os.kill(pid, signal.SIGSTOP)
    heard = Heard()
    process = WorkerProcess(1, BARD, place, heard, LOG, spare)
    assert process.pid == pid
    os.kill(pid, signal.SIGKILL)
    assert (await heard.word()).ready
    assert process.pid != pid
    assert heard.ends.empty()
    await _stop(process, heard)


def test_one_that_is_stopped_can_be_dismissed(spare: WarmStandby) -> None:
    spare.prepare()
    os.kill(_pid(spare), signal.SIGSTOP)
    spare.dismiss()


async def test_its_arguments_may_be_wrong_and_that_is_told(
    place: SpawnContext, spare: WarmStandby
) -> None:
    spare.prepare()
    heard = Heard()
    wrong = model_spec("bard", (*SERVE, "--model", "no.gguf", "--prot", "0"))
    WorkerProcess(1, wrong, place, heard, LOG, spare)
    assert "--port" in await heard.end()


def test_dismissed_it_is_gone_and_leaves_no_descriptors(spare: WarmStandby) -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    spare.prepare()
    pid = _pid(spare)
    spare.dismiss()
    assert not alive(pid)
    assert len(list(Path("/dev/fd").iterdir())) == before
