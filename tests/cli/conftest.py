"""Users with a separate data directory, and one whose swapd runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.user import User


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    user = User(tmp_path)
    try:
        yield user
    finally:
        user.leaves()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """A user whose swapd runs with both demo models; tests must leave it unchanged."""
    user = User(tmp_path_factory.mktemp("served"))
    try:
        started = user.types("start")
        assert started.returncode == 0, started.stderr
        yield user
    finally:
        user.leaves()
