"""Who a process is, beyond its number, which the system gives away again."""

from __future__ import annotations

from pathlib import Path

import psutil

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def start_time(pid: int) -> str:
    """A mark of the moment in which this process was started; empty when it has ended.

    On Linux in ticks since the machine's start, which no step of the clock changes. Two processes
    that had the same number after each other differ in it.
    """
    if _BOOT.exists():
        try:
            # The name in brackets may hold anything, brackets and spaces too.
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2]
            boot = _BOOT.read_text(encoding="ascii").strip()
        except OSError:
            return ""
        state, *rest = fields.split()
        return "" if state in "ZX" else f"{boot}:{rest[18]}"
    try:
        process = psutil.Process(pid)
        gone = process.status() == psutil.STATUS_ZOMBIE
        return "" if gone else f"{process.create_time():.6f}"
    except psutil.Error:
        return ""


def program_name(pid: int) -> str:
    """The file that the process runs; empty when that can't be known."""
    try:
        return psutil.Process(pid).exe()
    except (psutil.Error, OSError):
        return ""


def environment_variable(pid: int, name: str) -> str:
    """A variable of the environment that the process was started with; empty if not known."""
    try:
        return psutil.Process(pid).environ().get(name, "")
    except (psutil.Error, OSError):
        return ""
