"""Data directories, demo models and gates for tests with a running daemon."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.daemon import FAKE, ROOT, Swapd, config


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def demo(name: str, flags: str = "", **more: Any) -> dict[str, Any]:
    """Return the entry of a demo model. One thread: several tests' workers run at once."""
    return {"cmd": f"${{worker}} --model {ROOT}/demo/{name}.gguf --threads 1 {flags}", **more}


def fake(name: str, flags: str = "", slots: int = 4, **more: Any) -> dict[str, Any]:
    """Return the entry of an external worker without a model."""
    cmd = f"{FAKE} --port ${{PORT}} --name {name} --silent --outlive-stdin {flags}"
    return {"cmd": cmd, "concurrencyLimit": slots, **more}


class Gate:
    """Writing end of a FIFO that a fake worker reads as a gate."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._pipe: int | None = None

    def open(self) -> None:
        """Open the FIFO; wait until the worker has opened it."""
        if self._pipe is None:
            self._pipe = os.open(self.path, os.O_WRONLY)

    def let(self, count: int = 1) -> None:
        """Let the worker pass so many times."""
        self.open()
        assert self._pipe is not None
        os.write(self._pipe, b"." * count)

    def open_for_good(self) -> None:
        self.open()
        self.close()

    def close(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


GateMaker: TypeAlias = Callable[[str], Gate]


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Callable[[str], Gate]]:
    made: list[Gate] = []

    def make(name: str) -> Gate:
        made.append(Gate(tmp_path / name))
        return made[-1]

    yield make
    for opened in made:
        opened.close()


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swapd]:
    """Yield a swapd with both demo models, shared by tests that change nothing in it."""
    home = tmp_path_factory.mktemp("both")
    models = {"bard": demo("bard", "--parallel 4"), "alice": demo("alice", "--parallel 1")}
    with Swapd(home, config(models, max_body="1 MiB")) as swapd:
        yield swapd
