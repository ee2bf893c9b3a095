"""Two busy workers on one machine don't stall each other."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.workers.conftest import Start
from tests.workers.process import WorkerProcess

ROUNDS, ANSWER = 6, 200
FAIR_SHARE = 0.2
"""Share of the rate with one thread each; spinning without end makes less than 0.02."""


def tokens_per_second(workers: list[WorkerProcess]) -> float:
    """Return the tokens per second of all workers, each with one answer after the other."""
    body = {"prompt": "Who goes there?", "max_tokens": ANSWER, "ignore_eos": True}

    def work(worker: WorkerProcess) -> None:
        for _ in range(ROUNDS):
            worker.text(**body)

    began = time.perf_counter()
    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(work, workers))
    return len(workers) * ROUNDS * ANSWER / (time.perf_counter() - began)


def test_more_threads_than_cores_do_not_stall_workers(bard_gguf: Path, start: Start) -> None:
    cores = str(max(2, os.cpu_count() or 1))
    modest = [start(bard_gguf, "--threads", "1") for _ in range(2)]
    greedy = [start(bard_gguf, "--threads", cores) for _ in range(2)]
    rates = {"modest": 0.0, "greedy": 0.0}
    for _ in range(2):  # other load affects both
        rates["modest"] += tokens_per_second(modest)
        rates["greedy"] += tokens_per_second(greedy)
    assert rates["greedy"] > FAIR_SHARE * rates["modest"], rates
