"""Time slices: the time for which a worker keeps its capacity while other models wait for it.

A swap costs a start and, later, another start of the evicted model. So requests for a resident
model are served together before a swap, for a time slice that is a multiple of that cost and
never longer than `max_turn`; then its worker is preempted. A worker that falls idle within its
slice keeps its capacity only for the short time in which its clients usually return.
"""

from __future__ import annotations

import math

from swapd.domain.models import Limits, ModelSpec
from swapd.scheduler.queue import Rank
from swapd.scheduler.records import WorkerRecord
from swapd.scheduler.state import SchedulerState

TURN = 5.0
"""Length of a time slice, in swaps there and back: at most a sixth of the time is swapping."""
LINGER = 4.0
"""Time to wait for clients to return, in their mean pause."""
MAX_LINGER = 0.5
"""Maximum of that time, in swaps."""
MIN_LINGER = 0.02
"""Seconds. Shorter pauses come from the network and the scheduler, not from the client."""


def keeps_place_until(
    state: SchedulerState, worker: WorkerRecord, rival: ModelSpec, rank: Rank, limits: Limits
) -> float:
    """Return the time until which `worker` is not evicted for `rival`, a model of this rank.

    A time in the past: it may be evicted now. The cost of a model that never loaded is unknown,
    so its time slice is empty.
    """
    ends = _slice_end(state, worker, rival, rank, limits)
    stay = worker.spec.serving.min_residency
    return max(worker.ready_since + stay, ends) if stay else ends


def _slice_end(
    state: SchedulerState, worker: WorkerRecord, rival: ModelSpec, rank: Rank, limits: Limits
) -> float:
    name = worker.spec.name
    begin = max(worker.ready_since, rank[0])
    if state.rank(name) < rank:
        # Older requests wait for this worker: they are served first, but only up to the bound.
        return begin + limits.max_turn if limits.max_turn else math.inf
    swap = state.load_seconds(name) + state.load_seconds(rival.name)
    slice_end = begin + min(TURN * swap, limits.max_turn)
    if worker.busy or name in state.queues:
        return slice_end
    return min(slice_end, worker.last_used + _linger(state, name, swap))


def _linger(state: SchedulerState, model: str, swap: float) -> float:
    """Return the seconds for which an idle worker is kept for clients that may return.

    0 when so long a wait costs too much of the swap that it may save.
    """
    record = state.records.get(model)
    pause = record.mean_pause if record is not None else None
    if pause is None or LINGER * pause > MAX_LINGER * swap:
        return 0.0
    return max(LINGER * pause, min(MIN_LINGER, MAX_LINGER * swap))
