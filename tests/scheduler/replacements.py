"""Rolling replacements of the simulated machine's workers, and their invariants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swapd.domain.models import ModelSpec

if TYPE_CHECKING:
    from tests.scheduler.machine import Machine
    from tests.scheduler.machine_worker import Process


def has_heir(process: Process, spec: ModelSpec) -> bool:
    """Return True if a second worker for this spec may start beside the model's worker."""
    return process.ready and not process.spec.same_process(spec)


def is_heir(m: Machine, process: Process) -> bool:
    """Return True if a worker of an outdated configuration still serves this one's model."""
    if process.told is not None or process.killed or m.drains(process):
        return False
    return any(
        other.spec.name == process.spec.name
        and (other.told is None and not other.killed and not m.drains(other))
        and has_heir(other, process.spec)
        for other in m.processes.values()
    )
