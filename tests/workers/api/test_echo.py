"""Prompts that are scored: what is taken for it is given back, whoever goes when."""

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
    """One in this process, with its engine's thread."""
    worker = load(Settings(str(tiny_gguf), parallel=2, ctx_size=512, threads=1, log=False))
    worker.engine.attach(asyncio.get_running_loop(), lambda: None)
    threading.Thread(target=worker.engine.run, daemon=True).start()
    return worker


class Books:
    """Contexts that were made, and those that were given back."""

    def __init__(self) -> None:
        self.made = self.freed = 0

    def context(self, *arguments: Any) -> Context:
        """As Context, and booked."""
        books, context = self, Context(*arguments)
        free = context.free

        def freed() -> None:
            books.freed += 1
            free()

        context.free = freed  # type: ignore[method-assign]
        self.made += 1
        return context


async def ask_and_go(worker: WorkerService) -> None:
    """Somebody asks for a score while the engine is busy, goes, and then the engine comes to it."""
    gate = threading.Event()

    def busy() -> None:
        gate.wait()

    worker.engine.run_between_steps(Task(busy, lambda: None))
    asyncio.get_running_loop().call_later(0.1, gate.set)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(echo.echoes(worker, [[65] * 100], 1, 1), 0.02)


async def test_who_goes_before_it_is_read_leaves_nothing(
    worker: WorkerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = Books()
    monkeypatch.setattr(echo, "Context", books.context)
    for _ in range(3):
        await ask_and_go(worker)
    (told,) = await echo.echoes(worker, [[65] * 100], 1, 1)
    assert len(told.told) == 100
    assert books.made == books.freed == 4
