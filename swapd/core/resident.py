"""A worker in the books."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from swapd.core.lifecycle import State, Step, advance
from swapd.domain.events import RequestId, WorkerId
from swapd.domain.models import ModelSpec


@dataclass(slots=True)
class Resident:
    """A worker whose process is alive or being started."""

    worker: WorkerId
    spec: ModelSpec
    since: float
    deadline: float | None
    """When it is killed: if it has not come up by then, or not gone."""
    state: State = State.STARTING
    told_slots: int = 0
    heir: bool = False
    """It is to take the place of a worker of its model that is ready, once it is so itself."""
    alone: bool = False
    """What it serves, if anything, is to be served alone."""
    busy: set[RequestId] = field(default_factory=set)
    served: int = 0
    up_since: float = -math.inf
    """When it came up."""
    last_used: float = 0.0
    keep_alive: float | None = None
    """What the last request that said so wants instead of the model's time to live."""
    sign: float = 0.0
    """When it was last known to make progress, or got something to do."""
    look_at: float = math.inf
    """When somebody is to look whether it makes progress."""
    because: str = ""
    """Why it was asked to go."""
    late: str = ""
    """Says that it was killed because it did not come up in time."""
    hung: str = ""
    """Says that it was killed because it made no progress."""

    def step(self, step: Step) -> None:
        self.state = advance(self.state, step)

    @property
    def idle(self) -> bool:
        return self.state is State.READY and not self.busy

    @property
    def is_coming(self) -> bool:
        """Whether it has not come up: how much it holds already is not known."""
        return self.up_since == -math.inf

    @property
    def slots(self) -> int:
        """As many as the worker itself has told, else as many as its model's entry says."""
        return self.told_slots or self.spec.slots

    @property
    def free_slots(self) -> int:
        if self.state is not State.READY or (self.alone and self.busy):
            return 0
        return self.slots - len(self.busy)

    def lasts(self, heeds_time: bool) -> float:
        """Seconds of idleness after which it goes; infinite: it stays.

        A request's wish counts under every policy, the model's time to live under those that
        heed it.
        """
        if self.spec.pinned:
            return math.inf
        if self.keep_alive is not None:
            return self.keep_alive if self.keep_alive >= 0 else math.inf
        return self.spec.ttl if self.spec.ttl and heeds_time else math.inf
