"""Identity of a process beyond its pid, which the kernel reuses."""

from __future__ import annotations

from pathlib import Path

import psutil

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def start_time(pid: int) -> str:
    """Return a text that identifies the start time of the process; empty when it has ended.

    On Linux in ticks since boot, which no clock step changes. Two processes that have the same pid
    one after the other differ in it.
    """
    if _BOOT.exists():
        try:
            # The name in brackets may contain any characters, brackets and spaces too.
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2]
            boot = _BOOT.read_text(encoding="ascii").strip()
        except OSError:
            return ""
        state, *rest = fields.split()
        return "" if state in "ZX" else f"{boot}:{rest[18]}"
    try:
        process = psutil.Process(pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return "" if ended else f"{process.create_time():.6f}"
    except psutil.Error:
        return ""


def program_name(pid: int) -> str:
    """Return the path of the process's program; empty when it is not available."""
    try:
        return psutil.Process(pid).exe()
    except (psutil.Error, OSError):
        return ""


def environment_variable(pid: int, name: str) -> str:
    """Return a variable of the process's initial environment; empty when it is not available."""
    try:
        return psutil.Process(pid).environ().get(name, "")
    except (psutil.Error, OSError):
        return ""
