"""A place where workers are spawned."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from swapd.effects.guardian import Guardian
from swapd.effects.register import Register
from swapd.effects.spawn import Place

LOG = logging.Logger("test")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    guardian = Guardian(LOG, Register(tmp_path / "workers.json", LOG))
    yield Place(tmp_path, guardian, dict(os.environ))
    guardian.dismiss()
