"""Requests under whom workers end: who is served again, who alone, and who no more.

When a worker ends by itself, any of the requests that it was serving may be the cause, or none.
They are served again; those under whom a second one ends are served alone, one after the other. A
request under whom a worker ends that served nothing else, and not for the first time, is poison:
it is refused, and so is for a while whatever has its fingerprint. Innocents beside it lose two
workers at most, and one accident convicts nobody. Nor do any number of kills from outside.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from swapd.domain.commands import RejectReason
from swapd.domain.events import RequestId
from swapd.scheduler.admission import Rejection
from swapd.scheduler.queue import QueuedRequest

TRIES = 3
"""Workers that a request may lose, but for those that somebody killed."""
KILLS = 10
"""Workers that somebody may kill under a request: that may go on for ever."""
POISON_FOR = 600.0
"""Seconds for which what happened is remembered, and poison refused."""
MOST = 1024
"""Fingerprints remembered."""


@dataclass(frozen=True, slots=True)
class WorkerLoss:
    """The end of a worker, as one of its requests met it."""

    reason: str
    guilty: bool


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What is known of a fingerprint."""

    falls: int
    until: float
    reason: str = ""
    """How its last worker ended, if it is poison."""


class Quarantine:
    """What is remembered of requests whose workers ended."""

    def __init__(self) -> None:
        self._falls: dict[RequestId, WorkerLoss] = {}
        self._bereft: set[RequestId] = set()
        """Those whose worker somebody has killed."""
        self._known: dict[str, Suspicion] = {}
        """Oldest first."""

    def __bool__(self) -> bool:
        """Whether a fingerprint of any request would tell anything."""
        return bool(self._known)

    def worker_ended(self, served: Collection[QueuedRequest], reason: str) -> bool:
        """A worker that served these has ended by itself; whether one of them is the cause."""
        guilty = len(served) == 1 and all(waiting.falls for waiting in served)
        for waiting in served:
            self._falls[waiting.request] = WorkerLoss(reason, guilty)
        return guilty

    def worker_killed(self, served: Collection[QueuedRequest]) -> None:
        """Somebody has killed a worker that served these."""
        self._bereft.update(waiting.request for waiting in served)

    def arrived(self, waiting: QueuedRequest, now: float) -> Rejection | None:
        """A request is here whose fingerprint may be known; the verdict on it if it is poison."""
        while self._known and (oldest := next(iter(self._known))):
            if self._known[oldest].until > now and len(self._known) <= MOST:
                break
            del self._known[oldest]
        known = self._known.get(waiting.fingerprint)
        if known is None:
            return None
        waiting.falls = known.falls
        return _poison(known.reason) if known.reason else None

    def returned(self, waiting: QueuedRequest, fingerprint: str, now: float) -> Rejection | None:
        """A request has lost its worker; the verdict on it if it is not to be served again."""
        fall = self._falls.pop(waiting.request, None)
        waiting.fingerprint = fingerprint
        waiting.losses += 1
        waiting.kills += waiting.request in self._bereft
        self._bereft.discard(waiting.request)
        waiting.falls += fall is not None
        reason = fall.reason if fall else "they were killed"
        if fall:
            known = self._known.pop(fingerprint, Suspicion(0, now))
            falls, why = max(waiting.falls, known.falls), reason if fall.guilty else known.reason
            self._known[fingerprint] = Suspicion(falls, now + POISON_FOR, why)
            if fall.guilty:
                return _poison(reason)
        if waiting.losses - waiting.kills >= TRIES or waiting.kills >= KILLS:
            return Rejection(
                RejectReason.WORKER_FAILED, f"{waiting.losses} workers ended under it: {reason}"
            )
        return None

    def finished(
        self, waiting: QueuedRequest, fingerprint: str, answered: bool, now: float
    ) -> None:
        """A request is over: answered, or its worker ended (then with its fingerprint)."""
        if answered:
            self._known.pop(waiting.fingerprint, None)
        elif fingerprint and waiting.request in self._falls:
            self.returned(waiting, fingerprint, now)
        self._falls.pop(waiting.request, None)
        self._bereft.discard(waiting.request)


def _poison(reason: str) -> Rejection:
    return Rejection(
        RejectReason.POISON,
        f"this request ended its worker twice and is refused for {POISON_FOR / 60:g} minutes:"
        f" {reason}",
    )
