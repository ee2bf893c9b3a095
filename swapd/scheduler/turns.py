"""Whose turn it is: how long a worker keeps its place while others wait for the room it holds.

A swap costs a start and, later, the start of the one that went. So requests for a resident model
are served together before a swap, for a turn that is a multiple of that cost and never longer
than `max_wait`; then its worker yields. A worker that falls idle within its turn keeps its place
only for the moment in which its clients are known to come back.
"""

from __future__ import annotations

import math

from swapd.domain.models import Limits, ModelSpec
from swapd.scheduler.queue import Rank
from swapd.scheduler.state import SchedulerState, WorkerRecord

TURN = 5.0
"""Length of a turn, in swaps there and back: at most a sixth of the time goes into swapping."""
LINGER = 4.0
"""How long to wait for a client to come back, in its mean time to do so."""
LINGER_MOST = 0.5
"""The same at most, in swaps."""
LINGER_LEAST = 0.02
"""Seconds; below this a client's pause is the network's and the scheduler's."""


def keeps_place_until(
    books: SchedulerState, resident: WorkerRecord, rival: ModelSpec, asked: Rank, limits: Limits
) -> float:
    """Until when `resident` need not make room for `rival`, the first of whose requests has
    this rank.

    In the past when it has to make room now. Nothing is known of a model that never loaded, so
    its turn is empty.
    """
    ends = _turn_ends(books, resident, rival, asked, limits)
    stay = resident.spec.serving.min_residency
    return max(resident.up_since + stay, ends) if stay else ends


def _turn_ends(
    books: SchedulerState, resident: WorkerRecord, rival: ModelSpec, asked: Rank, limits: Limits
) -> float:
    name = resident.spec.name
    begun = max(resident.up_since, asked[0])
    if books.rank(name) < asked:
        # Older requests wait for it as well: they come first, but not for longer than the bound.
        return begun + limits.max_turn if limits.max_turn else math.inf
    swap = books.load_seconds(name) + books.load_seconds(rival.name)
    turn_ends = begun + min(TURN * swap, limits.max_turn)
    if resident.busy or name in books.queues:
        return turn_ends
    return min(turn_ends, resident.last_used + _linger(books, name, swap))


def _linger(books: SchedulerState, model: str, swap: float) -> float:
    """Seconds to keep an idle worker for clients that are about to ask again.

    None when so long a wait would cost too much of what it may save.
    """
    record = books.records.get(model)
    pause = record.mean_pause if record is not None else None
    if pause is None or LINGER * pause > LINGER_MOST * swap:
        return 0.0
    return max(LINGER * pause, min(LINGER_LEAST, LINGER_MOST * swap))
