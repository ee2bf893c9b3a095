"""Memory of the machine and of the workers: usage, container limit, pressure, OOM kills.

Container limit: Linux control groups, version 2, as described in the kernel's
Documentation/admin-guide/cgroup-v2.rst. `memory.max` holds bytes or `max`, `memory.current` bytes,
and `inactive_file` in `memory.stat` is page cache that the kernel reclaims before processes suffer.

Memory pressure: on Linux pressure stall information, `some avg10` of /proc/pressure/memory, or of
this process's control group where that is higher; see Documentation/accounting/psi.rst of the
kernel. On macOS the level of memory pressure, of which only the steps normal, warning and critical
are available. The macOS part follows Apple's documentation and has never been run.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from swapd.process.ports import family

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """Memory limit and usage of a control group, in bytes."""

    limit: int
    used: int


def group_memory(root: Path = ROOT, membership: Path = MEMBERSHIP) -> GroupMemory | None:
    """Return the figures of this process's group or the ancestor with the least memory left.

    None when none of them has a limit.
    """
    own = _own_path(membership)
    if own is None:
        return None
    folder = root / own
    groups = [g for f in (folder, *folder.parents) if f.is_relative_to(root) and (g := _read(f))]
    return min(groups, key=lambda g: g.limit - g.used, default=None)


def own_cgroup(root: Path = ROOT, membership: Path = MEMBERSHIP) -> Path | None:
    """Return the folder of this process's control group; None without control groups version 2."""
    own = _own_path(membership)
    return None if own is None else root / own


def _own_path(membership: Path) -> Path | None:
    """Return the group's path below the root, from the line `0::/path`."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None  # Not Linux, or no /proc.
    return next((Path(line[3:].lstrip("/")) for line in lines if line.startswith("0::")), None)


def _read(folder: Path) -> GroupMemory | None:
    """Return a group's figures; None when it has no limit or no memory controller."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        current = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    return GroupMemory(int(limit), max(0, current - int(stat.get("inactive_file", 0))))


PROC = Path("/proc/pressure/memory")
LEVEL = ("/usr/sbin/sysctl", "-n", "kern.memorystatus_vm_pressure_level")
LEVELS = {"2": 50.0, "4": 100.0}
"""Warning and critical, in percent: both are above any reasonable `memory.psi_threshold`."""


def pressure_percent(proc: Path = PROC) -> float:
    """Return the percent of the last 10 s in which a process waited for memory; 0 if unknown."""
    if sys.platform == "darwin":
        return _level()
    folder = own_cgroup()
    own = _some(folder / "memory.pressure") if folder is not None else 0.0
    return max(_some(proc), own)


def _some(path: Path) -> float:
    """Return the figure of a file such as `some avg10=0.12 avg60=0.03 avg300=0.00 total=51`."""
    try:
        lines = path.read_text().splitlines()
        words = next((line.split() for line in lines if line.startswith("some ")), [])
        return next((float(w[6:]) for w in words if w.startswith("avg10=")), 0.0)
    except (OSError, ValueError):
        return 0.0  # The kernel lacks it, or it is switched off.


def _level() -> float:
    try:
        result = subprocess.run(LEVEL, capture_output=True, text=True, check=True, timeout=2.0)
    except (OSError, subprocess.SubprocessError):
        return 0.0
    return LEVELS.get(result.stdout.strip(), 0.0)


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Percent of the machine's memory in use, and bytes held by each sampled pid."""

    used_percent: float
    held: Mapping[int, int]
    pressure_percent: float = 0.0
    """Percent of the last 10 s in which a process waited for memory; 0 if unknown."""


def sample(pids: list[int]) -> MemorySample:
    """Take one sample. May take milliseconds for large processes: not for the event loop."""
    held = {pid: bytes_held(pid) for pid in pids}
    return MemorySample(used_percent(), {p: b for p, b in held.items() if b}, pressure_percent())


def used_percent() -> float:
    """Return the percent of memory in use, of the machine or the container, whichever is fuller."""
    machine: float = psutil.virtual_memory().percent
    group = group_memory()
    return max(machine, 100.0 * group.used / group.limit) if group and group.limit else machine


def free() -> int:
    """Return the bytes that a new process may take, of the machine or of the container.

    Page cache that the kernel can reclaim counts as free. Takes some microseconds.
    """
    machine = int(psutil.virtual_memory().available)
    group = group_memory()
    return min(machine, max(0, group.limit - group.used)) if group else machine


def bytes_held(pid: int) -> int:
    """Return the bytes held by a process and its descendants; 0 if it is gone or inaccessible.

    On Linux the proportional set size, so that a file mapped by two workers counts once; elsewhere
    the memory that is unique to the process.
    """
    total = 0
    for member in family(pid):
        try:
            info = member.memory_full_info()
            total += getattr(info, "pss", 0) or info.uss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def total() -> int:
    """Return the bytes of memory of the machine, or of the container if that is less."""
    machine = int(psutil.virtual_memory().total)
    group = group_memory()
    return min(machine, group.limit) if group else machine


VMSTAT = Path("/proc/vmstat")


def oom_kills() -> int | None:
    """Return the OOM kills since boot, those in containers included; None if not available."""
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
