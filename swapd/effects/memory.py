"""A look at the machine's memory and at what workers hold of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from swapd.effects.cgroup import group_memory
from swapd.effects.ports import family
from swapd.effects.stalls import stalled_percent


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Percent of the machine's memory in use, and bytes held by each pid asked for."""

    used_percent: float
    held: Mapping[int, int]
    stalled: float = 0.0
    """Percent of the last ten seconds in which something waited for memory; 0: not told."""


def sample(pids: list[int]) -> MemorySample:
    """Look once. May take some milliseconds for large processes: not for the event loop."""
    held = {pid: bytes_held(pid) for pid in pids}
    return MemorySample(used_percent(), {p: b for p, b in held.items() if b}, stalled_percent())


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
