"""What a look at the memory asks for: pure questions about one sample."""

from __future__ import annotations

from enum import Enum

from swapd.domain import events as ev
from swapd.domain.models import Limits


class Pressure(Enum):
    """Who may have to go for it."""

    NONE = 0
    IDLE = 1
    BUSY = 2
    """A busy worker, when no idle one is left."""


def pressure_of(event: ev.Event, limits: Limits) -> Pressure:
    """How much the memory is pressed, if this event is a look at it."""
    if not isinstance(event, ev.Sampled):
        return Pressure.NONE
    if 0 < limits.critical_percent < event.used_percent:
        return Pressure.BUSY
    full = 0 < limits.threshold_percent < event.used_percent
    stalls = limits.threshold_percent > 0 and 0 < limits.stall_percent < event.stalled
    return Pressure.IDLE if full or stalls else Pressure.NONE
