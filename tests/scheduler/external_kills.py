"""Invariants of workers that end or hang while they serve requests."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from swapd.domain import commands as od
from swapd.domain import events as ev
from swapd.scheduler.quarantine import MAX_KILLS, MAX_LOSSES, POISON_FOR
from tests.scheduler.machine_worker import Process

if TYPE_CHECKING:
    from tests.scheduler.machine import Machine

FINGERPRINTS = 5
"""Of all requests: some have the same."""


def fingerprint(request: int) -> str:
    """By what a request of the machine is known."""
    return f"print {request % FINGERPRINTS}"


def silent_since(m: Machine, p: Process) -> float | None:
    """Since when a worker has something to do and makes no progress; None: it does."""
    slotted = p.serving - m.guests
    if p.stuck is None or not slotted:
        return None
    return max(p.stuck, p.busy_since)


def check_kill(m: Machine, p: Process) -> None:
    """Check that only a worker without progress for the whole timeout counts as hung."""
    since = silent_since(m, p)
    limit = m.spec(p).serving.hang_timeout
    m.require(since is not None and limit > 0, f"worker {p.worker} killed as hung, and is not")
    assert since is not None
    m.require(m.now >= since + limit, f"worker {p.worker} killed as hung too soon")


def check_hung(m: Machine) -> None:
    """Check that hung workers are found in time."""
    for p in m.processes.values():
        since, limit = silent_since(m, p), m.spec(p).serving.hang_timeout
        if since is None or not limit or p.killed or p.told is not None or p.dead:
            continue
        since = max(since, m.terms_since)
        m.require(m.now <= since + limit + 1e-6, f"worker {p.worker} hangs and nobody notices")


def check_grant(m: Machine, request: int, p: Process) -> None:
    """Each has so many tries, and from the second loss on a worker for itself."""
    falls, losses = m.falls.get(request, 0), m.losses.get(request, 0)
    m.require(
        not _is_out_of_tries(m, request), f"request {request} is served after {losses} losses"
    )
    beside = p.serving - m.guests - {request}
    if request not in m.guests:
        m.require(not beside or falls < 2, f"request {request} must be served alone")
        alone = [r for r in beside if m.falls.get(r, 0) > 1]
        m.require(not alone, f"request {request} is served beside {alone}")


def check_refusal(m: Machine, request: int, why: od.RejectReason) -> None:
    """Poison is what was served alone when a worker ended, and not the first time; or seems so."""
    if why is od.RejectReason.POISON:
        until = m.poison.get(fingerprint(request), m.now)
        m.require(m.now < until, f"request {request} is refused for nothing it did")
    if why is od.RejectReason.WORKER_FAILED:
        m.require(_is_out_of_tries(m, request), f"request {request} had tries left")


def _is_out_of_tries(m: Machine, request: int) -> bool:
    losses, kills = m.losses.get(request, 0), m.kills.get(request, 0)
    return losses - kills >= MAX_LOSSES or kills >= MAX_KILLS


def note_end(m: Machine, p: Process, killed_externally: bool) -> None:
    """A worker has ended with what it serves now; whose fault that may be, if anybody's."""
    by_itself = p.ready and not (p.killed or p.told is not None)
    slotted = p.serving - m.guests
    if killed_externally:
        for request in slotted:
            m.kills[request] = m.kills.get(request, 0) + 1
    if killed_externally or not (by_itself or p.killed_as_hung):
        return
    for request in slotted:
        known = fingerprint(request)
        again = m.falls.get(request, 0) > 0 or m.fell.get(known, -math.inf) + POISON_FOR > m.now
        m.falls[request] = m.falls.get(request, 0) + 1
        if len(slotted) == 1 and again:
            m.poison[known] = m.now + POISON_FOR
    m.fell |= {fingerprint(request): m.now for request in slotted}


def lose(m: Machine, request: int, again: bool) -> None:
    """The worker of a granted request has gone: it comes again, or has failed."""
    if not again:
        m.end(request, "finished")
        m.tell(ev.RequestFinished(m.now, request, False, 0, fingerprint(request)))
        return
    m.granted.pop(request)
    m.losses[request] = m.losses.get(request, 0) + 1
    for other in m.open:
        # It goes before whoever has come since, and may be served alone.
        m.patience[other] += 2 * m.turn
    m.tell(ev.RequestRetried(m.now, request, fingerprint(request)))


def look(m: Machine, worker: int) -> None:
    """Look at a worker: one that is stuck has made no progress since."""
    m.looks.discard(worker)
    process = m.processes.get(worker)
    stuck = process.stuck if process else None
    m.tell(ev.LivenessReported(m.now, worker, m.now if stuck is None else stuck))


def may_want_to_be_alone(m: Machine, request: int, model: str) -> bool:
    """Return True if this request, or an equal one for its model, has lost a worker."""
    return any(
        m.losses.get(r) or m.falls.get(r) or fingerprint(r) in m.fell
        for r, asked in m.open.items()
        if r == request or asked == model
    )
