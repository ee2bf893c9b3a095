"""Memory that other programs hold on the simulated machine, and the invariants on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swapd.scheduler.emitter import PRESSURE

if TYPE_CHECKING:
    from tests.scheduler.machine import Machine


def free(m: Machine) -> int:
    """Free bytes; a worker takes its share when it becomes ready."""
    held = sum(m.need(p) for p in m.processes.values() if p.ready)
    return max(0, m.capacity - m.foreign - held)


def check_start(m: Machine) -> None:
    """Check that a worker starts only if memory is free for it beside the starting ones."""
    taken = sum(m.need(p) for p in m.processes.values())
    alone = len(m.processes) == 1 and taken >= m.limits.budget_bytes > 0
    if m.limits.require_free_memory and not alone:
        coming = sum(m.need(p) for p in m.processes.values() if not p.ready)
        m.require(coming <= free(m), f"{coming} bytes are to come, {free(m)} are free")


def may_end_busy_ones(m: Machine, because: str) -> bool:
    """Return True if memory is so short that busy workers are evicted, as no idle one is left."""
    if because != PRESSURE or not 0 < m.limits.critical_percent < m.percent:
        return False
    states = {s.worker: s.state for s in m.scheduler.status()}
    awaited = {model for r, model in m.open.items() if r not in m.granted}
    return not any(
        states.get(p.worker) == "ready"
        and not p.serving - m.guests
        and not m.spec(p).serving.pinned
        and p.spec.name not in awaited
        for p in m.processes.values()
    )
