"""The life of one worker, as a table.

A worker is started, comes up, may drain, is stopped or killed, and exits; or it exits at any
point on its own. What the table does not name cannot happen, and raises.

`CAME_UP` is legal after `STOP` and `KILL`: the order counts from the moment it is given, but the
process may have reported before the signal reached it.
"""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType


class WorkerState(Enum):
    """Where a worker stands."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    """Takes no new grants, finishes those it has; then it is stopped."""
    STOPPING = "stopping"
    KILLED = "killed"
    GONE = "gone"


class Transition(Enum):
    """What happens to a worker or is ordered of it."""

    CAME_UP = "came up"
    DRAIN = "drain"
    STOP = "stop"
    KILL = "kill"
    EXITED = "exited"


class IllegalTransitionError(Exception):
    """A step that the state does not allow: a fault in the caller."""


TABLE = MappingProxyType(
    {
        (WorkerState.STARTING, Transition.CAME_UP): WorkerState.READY,
        (WorkerState.STARTING, Transition.STOP): WorkerState.STOPPING,
        (WorkerState.STARTING, Transition.KILL): WorkerState.KILLED,
        (WorkerState.STARTING, Transition.EXITED): WorkerState.GONE,
        (WorkerState.READY, Transition.DRAIN): WorkerState.DRAINING,
        (WorkerState.READY, Transition.STOP): WorkerState.STOPPING,
        (WorkerState.READY, Transition.KILL): WorkerState.KILLED,
        (WorkerState.READY, Transition.EXITED): WorkerState.GONE,
        (WorkerState.DRAINING, Transition.STOP): WorkerState.STOPPING,
        (WorkerState.DRAINING, Transition.KILL): WorkerState.KILLED,
        (WorkerState.DRAINING, Transition.EXITED): WorkerState.GONE,
        (WorkerState.STOPPING, Transition.CAME_UP): WorkerState.STOPPING,
        (WorkerState.STOPPING, Transition.KILL): WorkerState.KILLED,
        (WorkerState.STOPPING, Transition.EXITED): WorkerState.GONE,
        (WorkerState.KILLED, Transition.CAME_UP): WorkerState.KILLED,
        (WorkerState.KILLED, Transition.EXITED): WorkerState.GONE,
    }
)

SERVING = WorkerState.STARTING, WorkerState.READY
"""States in which a worker serves its model or soon will: at most one such worker per model."""

WORKING = WorkerState.READY, WorkerState.DRAINING
"""States in which a worker has requests to serve, and nobody has told it to end."""

LEAVING = WorkerState.DRAINING, WorkerState.STOPPING, WorkerState.KILLED
"""States from which a worker never comes back: its memory will be free, and is not yet."""


def advance(state: WorkerState, step: Transition) -> WorkerState:
    """The state after `step`; raises IllegalStepError when the table has no such step."""
    try:
        return TABLE[state, step]
    except KeyError:
        raise IllegalTransitionError(
            f"{step.value!r} is not possible for a worker that is {state.value}"
        ) from None
