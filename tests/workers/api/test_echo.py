"""Scored prompts: their memory is freed whenever the client disconnects."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from workers.api import echo
from workers.engine.engine import Task
from workers.llama.context import Context
from workers.load import load
from workers.service import WorkerService
from workers.settings import Settings


@pytest.fixture
async def worker(tiny_gguf: Path) -> WorkerService:
    """Load a worker in this process, with its engine's thread."""
    worker = load(Settings(str(tiny_gguf), parallel=2, ctx_size=512, threads=1, log=False))
    worker.engine.attach(asyncio.get_running_loop(), lambda: None)
    threading.Thread(target=worker.engine.run, daemon=True).start()
    return worker


class ContextCounter:
    """Numbers of contexts that were made and freed."""

    def __init__(self) -> None:
        self.made = self.freed = 0

    def context(self, *arguments: Any) -> Context:
        """Make a Context, and count it."""
        counter, context = self, Context(*arguments)
        free = context.free

        def freed() -> None:
            counter.freed += 1
            free()

        context.free = freed  # type: ignore[method-assign]
        self.made += 1
        return context


async def ask_and_cancel(worker: WorkerService) -> None:
    """Request a score while the engine is busy, and cancel it before the engine starts on it."""
    gate = threading.Event()

    def busy() -> None:
        gate.wait()

    worker.engine.run_between_steps(Task(busy, lambda: None))
    asyncio.get_running_loop().call_later(0.1, gate.set)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(echo.echoes(worker, [[65] * 100], 1, 1), 0.02)


async def test_a_request_cancelled_before_it_is_read_leaks_nothing(
    worker: WorkerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = ContextCounter()
    monkeypatch.setattr(echo, "Context", counter.context)
    for _ in range(3):
        await ask_and_cancel(worker)
    (scored,) = await echo.echoes(worker, [[65] * 100], 1, 1)
    assert len(scored.logprobs) == 100
    assert counter.made == counter.freed == 4
