"""Memory pressure, and free memory."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from swapd.process.memory import LEVELS, free, pressure_percent

PRESSURE = """some avg10={} avg60=0.03 avg300=0.00 total=51
full avg10=99.00 avg60=0.00 avg300=0.00 total=12
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pressure stall information needs Linux")
def test_pressure_stall_information_is_read(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.write_text(PRESSURE.format("12.34"))
    assert pressure_percent(file) == 12.34
    for invalid in ("", "some\n", "some avg10=much\n", "full avg10=5.0\n"):
        file.write_text(invalid)
        assert pressure_percent(file) == 0.0
    assert pressure_percent(tmp_path / "none") == 0.0
    assert 0.0 <= pressure_percent() <= 100.0


def test_macos_levels_exceed_any_reasonable_threshold() -> None:
    assert set(LEVELS) == {"2", "4"}
    assert min(LEVELS.values()) >= 50


def test_free_memory_is_less_than_all_memory() -> None:
    assert 0 < free() < psutil.virtual_memory().total
