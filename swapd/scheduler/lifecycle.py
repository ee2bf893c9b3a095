"""The life of one worker, as a table.

A worker is started, comes up, may drain, is stopped or killed, and exits; or it exits at any
point on its own. What the table does not name cannot happen, and raises.

`CAME_UP` is legal after `STOP` and `KILL`: the order counts from the moment it is given, but the
process may have reported before the signal reached it.
"""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType


class State(Enum):
    """Where a worker stands."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    """Takes no new grants, finishes those it has; then it is stopped."""
    STOPPING = "stopping"
    KILLED = "killed"
    GONE = "gone"


class Step(Enum):
    """What happens to a worker or is ordered of it."""

    CAME_UP = "came up"
    DRAIN = "drain"
    STOP = "stop"
    KILL = "kill"
    EXITED = "exited"


class IllegalStepError(Exception):
    """A step that the state does not allow: a fault in the caller."""


TABLE = MappingProxyType(
    {
        (State.STARTING, Step.CAME_UP): State.READY,
        (State.STARTING, Step.STOP): State.STOPPING,
        (State.STARTING, Step.KILL): State.KILLED,
        (State.STARTING, Step.EXITED): State.GONE,
        (State.READY, Step.DRAIN): State.DRAINING,
        (State.READY, Step.STOP): State.STOPPING,
        (State.READY, Step.KILL): State.KILLED,
        (State.READY, Step.EXITED): State.GONE,
        (State.DRAINING, Step.STOP): State.STOPPING,
        (State.DRAINING, Step.KILL): State.KILLED,
        (State.DRAINING, Step.EXITED): State.GONE,
        (State.STOPPING, Step.CAME_UP): State.STOPPING,
        (State.STOPPING, Step.KILL): State.KILLED,
        (State.STOPPING, Step.EXITED): State.GONE,
        (State.KILLED, Step.CAME_UP): State.KILLED,
        (State.KILLED, Step.EXITED): State.GONE,
    }
)

SERVING = State.STARTING, State.READY
"""States in which a worker serves its model or soon will: at most one such worker per model."""

WORKING = State.READY, State.DRAINING
"""States in which a worker has requests to serve, and nobody has told it to end."""

LEAVING = State.DRAINING, State.STOPPING, State.KILLED
"""States from which a worker never comes back: its memory will be free, and is not yet."""


def advance(state: State, step: Step) -> State:
    """The state after `step`; raises IllegalStepError when the table has no such step."""
    try:
        return TABLE[state, step]
    except KeyError:
        raise IllegalStepError(
            f"{step.value!r} is not possible for a worker that is {state.value}"
        ) from None
