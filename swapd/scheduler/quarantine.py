"""Poison-request detection: retry, isolate, then quarantine requests whose worker crashed.

When a worker crashes, any of the requests that it served may be the cause, or none. They are
retried; after a second crash each of them is isolated, that is, served alone. A request that was
served alone in a crash, and not in its first one, is a poison request: it is rejected, and so is
for some minutes every request with its fingerprint. The requests served beside it lose two
workers at most. One crash, and any number of external kills, make no request suspect.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from swapd.domain.commands import RejectReason
from swapd.domain.events import RequestId
from swapd.scheduler.queue import QueuedRequest
from swapd.scheduler.records import Rejection

MAX_LOSSES = 3
"""Workers that a request may lose, external kills not counted."""
MAX_KILLS = 10
"""External kills that a request may suffer: they may go on without end."""
POISON_FOR = 600.0
"""Seconds for which a crash is remembered and a poison request is rejected."""
MAX_FINGERPRINTS = 1024
"""Fingerprints remembered."""


@dataclass(frozen=True, slots=True)
class WorkerLoss:
    """The crash of a worker, recorded for one of its requests."""

    reason: str
    caused_crash: bool
    """True if the request is found to be the cause."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """The record of a fingerprint."""

    crashes: int
    until: float
    reason: str = ""
    """Exit reason of its last worker, if it is poison; empty: it is not."""


class Quarantine:
    """Memory of requests that lost workers, by request and by fingerprint."""

    def __init__(self) -> None:
        self._crashes: dict[RequestId, WorkerLoss] = {}
        self._killed: set[RequestId] = set()
        """Requests whose worker was killed externally."""
        self._suspicions: dict[str, Suspicion] = {}
        """Suspicion of each fingerprint, oldest first."""

    def __bool__(self) -> bool:
        """Return True while any fingerprint is under suspicion."""
        return bool(self._suspicions)

    def worker_crashed(self, served: Collection[QueuedRequest], reason: str) -> bool:
        """Record a crash for the requests that the worker served.

        Return True if one of them is found to be the cause.
        """
        caused = len(served) == 1 and all(request.crashes for request in served)
        for request in served:
            self._crashes[request.request] = WorkerLoss(reason, caused)
        return caused

    def worker_killed(self, served: Collection[QueuedRequest]) -> None:
        """Record an external kill for the requests that the worker served."""
        self._killed.update(request.request for request in served)

    def check(self, request: QueuedRequest, now: float) -> Rejection | None:
        """Apply the suspicion of a fingerprint to a new request; return a rejection if poison."""
        while self._suspicions and (oldest := next(iter(self._suspicions))):
            if self._suspicions[oldest].until > now and len(self._suspicions) <= MAX_FINGERPRINTS:
                break
            del self._suspicions[oldest]
        suspicion = self._suspicions.get(request.fingerprint)
        if suspicion is None:
            return None
        request.crashes = suspicion.crashes
        return _poison(suspicion.reason) if suspicion.reason else None

    def retried(self, request: QueuedRequest, fingerprint: str, now: float) -> Rejection | None:
        """Count the loss of a request's worker; return a rejection if it may not be retried."""
        # 1. Count the loss as a crash, an external kill, or neither.
        loss = self._crashes.pop(request.request, None)
        request.fingerprint = fingerprint
        request.losses += 1
        request.kills += request.request in self._killed
        self._killed.discard(request.request)
        request.crashes += loss is not None
        reason = loss.reason if loss else "they were killed"
        # 2. A crash makes the fingerprint suspect; its cause is poison.
        if loss:
            known = self._suspicions.pop(fingerprint, Suspicion(0, now))
            self._suspicions[fingerprint] = Suspicion(
                max(request.crashes, known.crashes),
                now + POISON_FOR,
                reason if loss.caused_crash else known.reason,
            )
            if loss.caused_crash:
                return _poison(reason)
        # 3. Losses of any kind have a bound.
        if request.losses - request.kills >= MAX_LOSSES or request.kills >= MAX_KILLS:
            return Rejection(
                RejectReason.WORKER_FAILED,
                f"{request.losses} workers ended while they served it: {reason}",
            )
        return None

    def finished(
        self, request: QueuedRequest, fingerprint: str, answered: bool, now: float
    ) -> None:
        """Forget a request that is answered, or has failed (then with its fingerprint)."""
        if answered:
            self._suspicions.pop(request.fingerprint, None)
        elif fingerprint and request.request in self._crashes:
            self.retried(request, fingerprint, now)
        self._crashes.pop(request.request, None)
        self._killed.discard(request.request)


def _poison(reason: str) -> Rejection:
    return Rejection(
        RejectReason.POISON,
        f"this request ended its worker twice and is refused for {POISON_FOR / 60:g} minutes:"
        f" {reason}",
    )
