"""Time lost waiting for memory, as the system tells it.

Linux: pressure stall information, `some avg10` of /proc/pressure/memory, or of our control group
where that says more; see the kernel's Documentation/accounting/psi.rst. macOS: the level of memory
pressure, of which only the steps normal, warning and critical are told. The latter is written from
Apple's documentation and was never run there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from swapd.effects.cgroup import own_folder

PROC = Path("/proc/pressure/memory")
LEVEL = ("/usr/sbin/sysctl", "-n", "kern.memorystatus_vm_pressure_level")
LEVELS = {"2": 50.0, "4": 100.0}
"""Warning and critical, as percents: both are above what anybody would set as a mark."""


def stalled_percent(proc: Path = PROC) -> float:
    """Percent of the last ten seconds in which something waited for memory; 0: not told."""
    if sys.platform == "darwin":
        return _level()
    folder = own_folder()
    own = _some(folder / "memory.pressure") if folder is not None else 0.0
    return max(_some(proc), own)


def _some(path: Path) -> float:
    """The figure of a file such as `some avg10=0.12 avg60=0.03 avg300=0.00 total=51`."""
    try:
        lines = path.read_text().splitlines()
        words = next((line.split() for line in lines if line.startswith("some ")), [])
        return next((float(w[6:]) for w in words if w.startswith("avg10=")), 0.0)
    except (OSError, ValueError):
        return 0.0  # A kernel without it, or with it switched off.


def _level() -> float:
    try:
        told = subprocess.run(LEVEL, capture_output=True, text=True, check=True, timeout=2.0)
    except (OSError, subprocess.SubprocessError):
        return 0.0
    return LEVELS.get(told.stdout.strip(), 0.0)
