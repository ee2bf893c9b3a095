"""Commands of one event: each is in effect in the state from the moment it is emitted."""

from __future__ import annotations

import math

from swapd.domain.commands import (
    AssignWorker,
    CheckLiveness,
    Command,
    Kill,
    PrefetchFiles,
    Preload,
    QueryFreeMemory,
    Reject,
    SampleMemory,
    SaveProfile,
    SetTimer,
    Start,
    Stop,
)
from swapd.domain.events import RequestId
from swapd.domain.models import ModelSpec
from swapd.scheduler.groups import belonging
from swapd.scheduler.lifecycle import Transition, WorkerState
from swapd.scheduler.queue import QueuedRequest
from swapd.scheduler.records import Rejection, WorkerRecord
from swapd.scheduler.state import SchedulerState

PRESSURE = "memory pressure"
UNCLAIMED = "no request waits for it any more"
CHANGED = "its configuration changed"


class Emitter:
    """The list of commands, and the functions that change the state and emit at once."""

    __slots__ = ("_commands", "_state")

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._commands: list[Command] = []

    def flush(self) -> list[Command]:
        """Return the commands since the last flush, in order."""
        commands, self._commands = self._commands, []
        return commands

    # -- requests ------------------------------------------------------------------------------

    def reject(self, request: RequestId, rejection: Rejection) -> None:
        """Reject a request that is in no queue."""
        self._commands.append(
            Reject(request, rejection.reason, rejection.message, rejection.retry_after)
        )

    def reject_all(self, model: str, rejection: Rejection) -> None:
        """Reject every request in the queue of this model."""
        for request in list(self._state.queues[model]):
            self._state.dequeue(request)
            self.reject(request, rejection)

    def assign(self, request: QueuedRequest, worker: WorkerRecord, now: float) -> None:
        """Assign a request, queued or new, to a ready worker."""
        if request.needs_slot and not worker.busy:
            worker.last_progress, worker.isolated = now, request.isolated
            self.watch(worker, now)
        self._state.assign(request, worker, now)
        self._commands.append(AssignWorker(request.request, worker.worker))

    # -- workers -------------------------------------------------------------------------------

    def start(self, spec: ModelSpec, now: float, replacement: bool = False) -> None:
        """Start a worker, and preload the models that belong to it."""
        state = self._state
        worker = state.add_worker(spec, now, replacement)
        # A worker that is never evicted for others may make queued requests unservable.
        state.all_touched |= spec.serving.pinned or bool(state.limits.groups)
        self._commands.append(Start(worker.worker, spec))
        self._preload_others(spec.name)

    def _preload_others(self, model: str) -> None:
        """Preload the other members of the model's group, if a client requested the model.

        Not if the model was itself preloaded: without capacity for all of them, they would evict
        each other without end.
        """
        state = self._state
        queue = state.queues.get(model)
        if queue is None or queue.slotless == len(queue):
            return
        for other in sorted(belonging(model, state.limits)):
            if state.serving(other) is None and other not in state.queues:
                self._commands.append(Preload(other))

    def stop(self, worker: WorkerRecord, reason: str, now: float) -> None:
        """Stop a worker, and its replacement if no request waits for that."""
        state, name = self._state, worker.spec.name
        state.step(worker, Transition.STOP)
        worker.reason = reason
        worker.deadline = now + worker.spec.serving.stop_grace
        self._commands.append(Stop(worker.worker, reason))
        replacement = state.serving(name)
        if replacement and replacement.state is WorkerState.STARTING and name not in state.queues:
            self.stop(replacement, UNCLAIMED, now)

    def drain(self, worker: WorkerRecord, reason: str) -> None:
        """Assign no further request to a worker; it is stopped when it is idle."""
        self._state.step(worker, Transition.DRAIN)
        worker.reason = reason

    def kill(self, worker: WorkerRecord, reason: str) -> None:
        """Kill a worker at once."""
        self._state.step(worker, Transition.KILL)
        worker.deadline = None
        self._commands.append(Kill(worker.worker, reason, bool(worker.hang)))

    def watch(self, worker: WorkerRecord, now: float) -> None:
        """Schedule a liveness check, so that two fall within the hang timeout."""
        limit = worker.spec.serving.hang_timeout
        if limit and worker.check_at == math.inf:
            worker.check_at = min(now + limit / 2, worker.last_progress + limit)

    def check_liveness(self, worker: WorkerRecord) -> None:
        """Query the last progress of a worker."""
        self._commands.append(CheckLiveness(worker.worker))

    # -- the machine ---------------------------------------------------------------------------

    def save_profile(self, worker: WorkerRecord) -> None:
        """Store the measurements of a worker's model."""
        self._commands.append(SaveProfile(worker.worker, self._state.profile(worker.spec.name)))

    def sample_memory(self, now: float) -> None:
        """Sample the memory now and after an interval, if any limit depends on it."""
        limits = self._state.limits
        if limits.threshold_percent or limits.critical_percent or limits.budget_bytes:
            self._state.sample_at = now + limits.interval
            self._commands.append(SampleMemory())

    def query_free_memory(self) -> None:
        """Query the free memory."""
        self._state.memory_waiters.queried(self._state.version)
        self._commands.append(QueryFreeMemory())

    def prefetch(self, model: str) -> None:
        """Read the files of the model that is loaded next into the page cache, once."""
        if model != self._state.prefetched:
            self._state.prefetched = model
            if model:
                self._commands.append(PrefetchFiles(self._state.catalog.models[model]))

    def set_timer(self, when: float | None) -> None:
        """Set the timer, if its time has changed; None: no timer."""
        if when != self._state.timer:
            self._state.timer = when
            self._commands.append(SetTimer(when))
