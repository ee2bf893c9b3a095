"""State machine of a worker, as a table.

A worker is started, becomes ready, may drain, is stopped or killed, and exits; or it exits at any
point on its own. Transitions that are not in the table raise.

`BECAME_READY` is legal after `STOP` and `KILL`: a command is in effect from the moment it is
emitted, but the process may have reported before the signal reached it.
"""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType


class WorkerState(Enum):
    """State of a worker."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    """Gets no new requests and finishes those it has; then it is stopped."""
    STOPPING = "stopping"
    KILLED = "killed"
    GONE = "gone"


class Transition(Enum):
    """An event or command that changes the state of a worker."""

    BECAME_READY = "became ready"
    DRAIN = "drain"
    STOP = "stop"
    KILL = "kill"
    EXITED = "exited"


class IllegalTransitionError(Exception):
    """A transition that the state does not allow: a bug in the caller."""


TABLE = MappingProxyType(
    {
        (WorkerState.STARTING, Transition.BECAME_READY): WorkerState.READY,
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
        (WorkerState.STOPPING, Transition.BECAME_READY): WorkerState.STOPPING,
        (WorkerState.STOPPING, Transition.KILL): WorkerState.KILLED,
        (WorkerState.STOPPING, Transition.EXITED): WorkerState.GONE,
        (WorkerState.KILLED, Transition.BECAME_READY): WorkerState.KILLED,
        (WorkerState.KILLED, Transition.EXITED): WorkerState.GONE,
    }
)

SERVING = WorkerState.STARTING, WorkerState.READY
"""States in which a worker serves its model or soon will: at most one such worker per model."""

WORKING = WorkerState.READY, WorkerState.DRAINING
"""States in which a worker serves requests and is not being stopped."""

LEAVING = WorkerState.DRAINING, WorkerState.STOPPING, WorkerState.KILLED
"""States that end in the exit of a worker: its memory will be free, and is not yet."""


def advance(state: WorkerState, step: Transition) -> WorkerState:
    """Return the state after `step`; raises IllegalTransitionError if the table has none."""
    try:
        return TABLE[state, step]
    except KeyError:
        raise IllegalTransitionError(
            f"{step.value!r} is not possible for a worker that is {state.value}"
        ) from None
