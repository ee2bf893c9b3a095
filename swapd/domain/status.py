"""How things stand, for those who look."""

from __future__ import annotations

from dataclasses import dataclass

from swapd.domain.events import WorkerId


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker as the core sees it. Times are seconds of the core's clock."""

    worker: WorkerId
    model: str
    state: str
    """starting, ready, draining, stopping or killed."""
    busy: int
    """Requests that hold a slot."""
    slots: int
    since: float
    """When it was started."""
    idle_since: float | None
    """End of its last request, or when it came up; None while it is busy or not ready."""
    expires_at: float | None
    """When idleness ends it, as things stand; None: never, or it is not idle."""
    bytes: int
    """Memory accounted to it: measured if it ran, else estimated."""


@dataclass(frozen=True, slots=True)
class QueueEstimate:
    """What somebody may expect who waits for a model."""

    waiting: int
    """Requests that wait for it."""
    ready: bool
    """Whether a worker of it is up."""
    loading_for: float | None
    """Seconds since its worker was started; None: none is coming up."""
    usual_load: float
    """Seconds that its load takes; 0: not known."""
