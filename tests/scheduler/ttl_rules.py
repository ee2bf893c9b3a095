"""Invariants of ttl and keep_alive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.scheduler.machine_worker import Process

if TYPE_CHECKING:
    from tests.scheduler.machine import Machine


def check(m: Machine, process: Process, because: str) -> None:
    """Idleness ends only those with a time to live, and not before it."""
    if because.startswith("idle"):
        m.require(is_timed(m, process), f"{process.spec.name} has no time to live")
        (status,) = [s for s in m.scheduler.status() if s.worker == process.worker]
        m.require(status.idle_since is None, "a worker that is stopped counts as idle")


def is_timed(m: Machine, process: Process) -> bool:
    """Return True if idleness stops it eventually."""
    spec = m.spec(process)
    if process.keep_alive is not None and not spec.serving.pinned:
        return process.keep_alive >= 0
    heeded = m.limits.policy in ("cost", "ttl", "lru-ttl")
    return heeded and spec.serving.ttl > 0 and not spec.serving.pinned
