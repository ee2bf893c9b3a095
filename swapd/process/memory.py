"""A look at the machine's memory and at what workers hold of it.

The memory limit of a container: Linux control groups, version 2.

Files as described in the kernel's Documentation/admin-guide/cgroup-v2.rst: `memory.max` holds
bytes or `max`, `memory.current` bytes, and `inactive_file` in `memory.stat` is page cache that
the kernel gives up before anybody suffers.

Time lost waiting for memory, as the system tells it.

Linux: pressure stall information, `some avg10` of /proc/pressure/memory, or of our control group
where that says more; see the kernel's Documentation/accounting/psi.rst. macOS: the level of memory
pressure, of which only the steps normal, warning and critical are told. The latter is written from
Apple's documentation and was never run there.

How often the system has killed a process for want of memory.
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
    """Bytes that a control group may have, and has in use."""

    limit: int
    used: int


def group_memory(root: Path = ROOT, membership: Path = MEMBERSHIP) -> GroupMemory | None:
    """The group among ours and those above it that has the least left; None without any limit."""
    own = _own_path(membership)
    if own is None:
        return None
    folder = root / own
    groups = [g for f in (folder, *folder.parents) if f.is_relative_to(root) and (g := _read(f))]
    return min(groups, key=lambda g: g.limit - g.used, default=None)


def own_cgroup(root: Path = ROOT, membership: Path = MEMBERSHIP) -> Path | None:
    """The folder of our own group; None where there are none of version 2."""
    own = _own_path(membership)
    return None if own is None else root / own


def _own_path(membership: Path) -> Path | None:
    """Our group's path below the root, from the line `0::/path`."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None  # No Linux, or no /proc.
    return next((Path(line[3:].lstrip("/")) for line in lines if line.startswith("0::")), None)


def _read(folder: Path) -> GroupMemory | None:
    """One group's figures; None when it has no limit or no memory controller."""
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
"""Warning and critical, as percents: both are above what anybody would set as a mark."""


def pressure_percent(proc: Path = PROC) -> float:
    """Percent of the last ten seconds in which something waited for memory; 0: not told."""
    if sys.platform == "darwin":
        return _level()
    folder = own_cgroup()
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


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Percent of the machine's memory in use, and bytes held by each pid asked for."""

    used_percent: float
    held: Mapping[int, int]
    pressure_percent: float = 0.0
    """Percent of the last ten seconds in which something waited for memory; 0: not told."""


def sample(pids: list[int]) -> MemorySample:
    """Look once. May take some milliseconds for large processes: not for the event loop."""
    held = {pid: bytes_held(pid) for pid in pids}
    return MemorySample(used_percent(), {p: b for p, b in held.items() if b}, pressure_percent())


def used_percent() -> float:
    """Share of the memory in use, of the machine or of our container, whichever is fuller."""
    machine: float = psutil.virtual_memory().percent
    group = group_memory()
    return max(machine, 100.0 * group.used / group.limit) if group and group.limit else machine


def free() -> int:
    """Bytes that a new process may take, of the machine's or of our container's.

    Pages of files that the system gives up for it count as free. Takes some microseconds.
    """
    machine = int(psutil.virtual_memory().available)
    group = group_memory()
    return min(machine, max(0, group.limit - group.used)) if group else machine


def bytes_held(pid: int) -> int:
    """Memory of a process and its descendants; 0 when it is gone or may not be looked at.

    On Linux the proportional set size, so that a file mapped by two workers counts once; else
    what is unique to the process.
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
    """Bytes of memory that there are for us: the machine's, or our container's if that is less."""
    machine = int(psutil.virtual_memory().total)
    group = group_memory()
    return min(machine, group.limit) if group else machine


VMSTAT = Path("/proc/vmstat")


def oom_kills() -> int | None:
    """Since the machine's start, those within containers included; None where it is not told."""
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
