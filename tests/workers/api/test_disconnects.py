"""Clients that disconnect at any moment: no slot, cell or memory stays allocated."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from tests.daemon import eventually
from tests.workers.conftest import Start
from tests.workers.process import WorkerProcess

CELLS, SLOTS = 2048, 4
REQUESTS = 150
MORE_MEMORY = 24_000_000
"""Bytes of allocator overhead; 150 leaked requests of this size would be far more."""


def one(worker: WorkerProcess, number: int) -> None:
    """Send a request of any kind; disconnect every second one before, in or after its answer."""
    dice = random.Random(number)
    body: dict[str, Any] = {
        "prompt": [dice.randrange(300, 900) for _ in range(dice.randrange(1, 500))],
        "max_tokens": dice.randrange(1, 80),
        "ignore_eos": True,
        "n": dice.choice([1, 1, 1, 3]),
        "stream": dice.random() < 0.5,
        "temperature": dice.choice([0, 0.9]),
        "cache_prompt": dice.random() < 0.5,
    }
    connection = worker.connect()
    connection.request("POST", "/v1/completions", json.dumps(body))
    if number % 2:
        response = connection.getresponse()
        assert response.status == 200
        response.read()
    elif body["stream"] and dice.random() < 0.7:
        connection.getresponse().read(dice.randrange(1, 2000))
    connection.close()


def storm(worker: WorkerProcess, numbers: range) -> None:
    """Send all requests, twelve at a time, and wait until the worker is idle."""
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda number: one(worker, number), numbers))
    eventually(
        lambda: worker.metric("requests_processing") + worker.metric("requests_deferred") == 0, 30
    )


def test_requests_cancelled_at_random_leak_nothing(bard_gguf: Path, start: Start) -> None:
    worker = start(bard_gguf, "--parallel", str(SLOTS), "--ctx-size", str(CELLS))
    process = psutil.Process(worker.process.pid)
    storm(worker, range(40))
    memory, files, threads = process.memory_info().rss, process.num_fds(), process.num_threads()
    storm(worker, range(40, 40 + REQUESTS))
    assert worker.metric('requests_total{end="cancelled"}') > REQUESTS / 10
    assert worker.metric('requests_total{end="failed"}') == 0
    eventually(lambda: process.num_fds() <= files)
    assert process.num_threads() <= threads
    assert process.memory_info().rss < memory + MORE_MEMORY
    _, slots = worker.ask("/slots")
    assert [slot["is_processing"] for slot in slots] == [False] * SLOTS
    whole = {"prompt": [400] * 900, "max_tokens": 100, "ignore_eos": True, "n": 2}
    with ThreadPoolExecutor(SLOTS) as pool:  # every slot and cell is free
        answers = list(pool.map(lambda _: worker.post("/v1/completions", whole), range(SLOTS)))
    assert {answer["usage"]["completion_tokens"] for answer in answers} == {200}
    worker.process.terminate()
    assert "Traceback" not in worker.close()[1], "clients that go are nothing to write of"
