"""How many threads a decode step should use: one a physical core, and no more than we may have.

llama.cpp's threads spin at barriers, so one thread too many is worse than one too few: the
others burn their cores waiting for it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path


def usable_cores() -> int:
    """Physical cores this process may run on, within the control group's quota; 1 at least."""
    if sys.platform == "darwin":
        return _darwin_cores()
    cpus = os.sched_getaffinity(0)
    siblings = {_read(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings") for n in cpus}
    cores = len(cpus) if None in siblings else len(siblings)
    return max(1, min(cores, _quota() or cores))


def _quota() -> int | None:
    """CPUs granted by cgroup v2's `cpu.max` ("<quota> <period>" in µs), rounded up."""
    quota, _, period = (_read("/sys/fs/cgroup/cpu.max") or "max").partition(" ")
    return None if quota == "max" else -(-int(quota) // int(period))


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None  # not this kind of kernel, or not shown inside a container


def _darwin_cores() -> int:
    """Performance cores; all physical ones on a machine without the distinction."""
    system = ctypes.CDLL(None)
    for name in (b"hw.perflevel0.physicalcpu", b"hw.physicalcpu"):
        count, size = ctypes.c_int32(0), ctypes.c_size_t(4)
        got = system.sysctlbyname(name, ctypes.byref(count), ctypes.byref(size), None, 0)
        if got == 0 and count.value > 0:
            return count.value
    return os.cpu_count() or 1
