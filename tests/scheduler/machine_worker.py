"""A pretend worker of the simulated machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from swapd.domain.models import Group, ModelSpec

LOAD_MOST = 8.0
"""Seconds within which a simulated worker comes up or fails."""
STOP_MOST = 5.0
SERVE_MOST = 10.0
"""Seconds within which a simulated request is over once it is granted."""


@dataclass
class Process:
    """A simulated worker: its spec and the commands that it received."""

    worker: int
    spec: ModelSpec
    born: float
    groups: tuple[Group, ...]
    """As they were when it was started."""
    started_at: int
    """The how-manieth start it was."""
    ready: bool = False
    up_at: float = 0.0
    told: float | None = None
    killed: bool = False
    killed_as_hung: bool = False
    deaf: bool = False
    dead: bool = False
    """True if it has ended and the scheduler has no event of that yet."""
    stuck: float | None = None
    """Since when it makes no progress, if it has something to do; None: it does."""
    serving: set[int] = field(default_factory=set)
    busy_since: float = 0.0
    """Time at which it got its first request after being idle."""
    keep_alive: float | None = None
    reason: str = ""
