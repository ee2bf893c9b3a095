"""What the simulated machine knows of workers that are to take the place of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swapd.domain.models import ModelSpec

if TYPE_CHECKING:
    from tests.scheduler.machine import Machine
    from tests.scheduler.machine_worker import Process


def has_heir(process: Process, spec: ModelSpec) -> bool:
    """Whether a second worker of its model may be started beside this one, for this entry."""
    return process.ready and not process.spec.same_process(spec)


def is_heir(m: Machine, process: Process) -> bool:
    """Whether a worker whose configuration is no more still serves the model of this one."""
    if process.told is not None or process.killed or m.drains(process):
        return False
    return any(
        other.spec.name == process.spec.name
        and (other.told is None and not other.killed and not m.drains(other))
        and has_heir(other, process.spec)
        for other in m.processes.values()
    )
