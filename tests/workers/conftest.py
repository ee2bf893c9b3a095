"""Shared workers, because starting one takes longer than most tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.workers.process import ROOT, WorkerProcess
from tests.workers.random_gguf import write_random_gguf


@pytest.fixture(scope="session")
def bard_gguf() -> Path:
    """Return a demo model, which generates text and has a chat template."""
    return ROOT / "demo" / "bard.gguf"


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model of random weights, with a token for each byte and a long context."""
    return write_random_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", context=32768)


class Start(Protocol):
    """A function that starts a worker for one test."""

    def __call__(self, model: Path, *flags: str) -> WorkerProcess: ...


@pytest.fixture
def start() -> Iterator[Start]:
    """Yield a function that starts workers; kill them all after the test."""
    workers: list[WorkerProcess] = []

    def begin(model: Path, *flags: str) -> WorkerProcess:
        workers.append(WorkerProcess(model, *flags))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.kill()


@pytest.fixture(scope="session")
def bard(bard_gguf: Path) -> Iterator[WorkerProcess]:
    """Start bard with eight slots, and with arithmetic that co-batching affects least."""
    flags = ("--parallel", "8", "--ctx-size", "8192", "--alias", "bard", "--flash-attn", "off")
    worker = WorkerProcess(bard_gguf, *flags)
    yield worker
    worker.kill()


@pytest.fixture(scope="session")
def tiny(tiny_gguf: Path) -> Iterator[WorkerProcess]:
    """Start the random model with two slots."""
    worker = WorkerProcess(tiny_gguf, "--parallel", "2", "--ctx-size", "32768")
    yield worker
    worker.kill()
