"""Snapshots of the scheduler's state, for status pages and progress reports."""

from __future__ import annotations

from dataclasses import dataclass

from swapd.domain.events import WorkerId


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """Status of one worker in the scheduler's state. Times are seconds of the scheduler's clock."""

    worker: WorkerId
    model: str
    state: str
    """State: starting, ready, draining, stopping, killed."""
    busy: int
    """Requests that hold a slot."""
    slots: int
    since: float
    """Time of its start."""
    idle_since: float | None
    """Time of its last request's end or of its readiness; None while it is busy or not ready."""
    expires_at: float | None
    """Time at which idleness will end it; None: never, or it is not idle."""
    bytes: int
    """Memory accounted to it, in bytes: measured if its model has run before, else estimated."""


@dataclass(frozen=True, slots=True)
class QueueEstimate:
    """Expected wait of a request that is queued for a model."""

    waiting: int
    """Requests that are queued for it."""
    ready: bool
    """True if a worker of it is ready."""
    loading_for: float | None
    """Seconds since its worker was started; None: no worker is starting."""
    usual_load: float
    """Mean time that it takes to load, in seconds; 0: unknown."""
