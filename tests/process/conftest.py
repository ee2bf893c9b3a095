"""Fixtures: a context for spawning workers, and workers in it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from swapd.process.orphans import Guardian, PidRegistry
from swapd.process.spawn import SpawnContext
from swapd.process.worker_process import WorkerProcess
from tests.specs import model_spec
from workers.protocol import LoadFailure, Message, ReadyMessage

LOG = logging.Logger("test")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[SpawnContext]:
    guardian = Guardian(LOG, PidRegistry(tmp_path / "workers.json", LOG))
    yield SpawnContext(tmp_path, guardian, dict(os.environ))
    guardian.close()


@dataclass
class Listener:
    """Listener with which a test waits for a worker's messages."""

    messages: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    ends: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    killed_externally: bool | None = None
    """True if another process killed the worker; None until it has ended."""

    def worker_reported(self, worker: int, message: Message) -> None:
        assert worker == 1
        self.messages.put_nowait(message)

    def worker_exited(self, worker: int, reason: str, killed_externally: bool) -> None:
        assert worker == 1
        self.killed_externally = killed_externally
        self.ends.put_nowait(reason)

    async def message(self) -> ReadyMessage:
        message = await asyncio.wait_for(self.messages.get(), 20)
        assert isinstance(message, ReadyMessage)
        return message

    async def load_error(self) -> LoadFailure:
        message = await asyncio.wait_for(self.messages.get(), 20)
        assert isinstance(message, LoadFailure)
        return message

    async def end(self) -> str:
        return await asyncio.wait_for(self.ends.get(), 20)


@pytest.fixture
async def spawn(
    place: SpawnContext,
) -> AsyncIterator[Callable[..., tuple[WorkerProcess, Listener]]]:
    made: list[tuple[WorkerProcess, Listener]] = []

    def make(command: str, **fields: object) -> tuple[WorkerProcess, Listener]:
        listener = Listener()
        given = {"argv": tuple(command.split()), **fields}
        spec = model_spec("m", **given)  # type: ignore[arg-type]
        made.append((WorkerProcess(1, spec, place, listener, LOG), listener))
        return made[-1]

    yield make
    for process, listener in made:
        if listener.killed_externally is None:
            process.kill()
            await listener.end()


Spawn = Callable[..., tuple[WorkerProcess, Listener]]
