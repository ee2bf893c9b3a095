"""Why a request is not served: pure questions to the books."""

from __future__ import annotations

from dataclasses import dataclass

from swapd.domain.commands import RejectReason
from swapd.domain.events import RequestArrived
from swapd.domain.models import Catalog, Limits, ModelSpec
from swapd.scheduler.groups import is_spared, must_not_coexist
from swapd.scheduler.queue import QueuedRequest
from swapd.scheduler.state import Capacity, SchedulerState, missing


@dataclass(frozen=True, slots=True)
class Rejection:
    """What a refusal says to whomever it concerns."""

    reason: RejectReason
    message: str
    retry_after: float = 0.0


CLOSING = Rejection(RejectReason.CLOSING, "swapd is shutting down", 5.0)


def too_many(
    books: SchedulerState, spec: ModelSpec, limits: Limits, event: RequestArrived
) -> tuple[Rejection, QueuedRequest | None] | None:
    """The verdict on a request for which there is no place in the queues, and on whom it falls.

    None when there is one. It falls on the newest request of the greediest tenant (given), when
    that leaves its tenant no fewer places than the one who comes; else on the newcomer (None).
    """
    mine = len(books.of_tenant.get(event.tenant, ()))
    queue, total = books.queues.get(spec.name), len(books.waiting)
    queued = len(queue) if queue else 0
    if 0 < limits.max_per_tenant <= mine:
        message = f"{mine} requests of this tenant wait already, which is the limit"
        return Rejection(
            RejectReason.TENANT_FULL, message, expected_wait(books, spec, queued)
        ), None
    if queue is not None and queued >= spec.serving.max_queue:
        verdict = Rejection(
            RejectReason.QUEUE_FULL,
            f"{queued} requests wait for {spec.name!r} already, which is the limit",
            expected_wait(books, spec, queued),
        )
        most, newest = queue.greediest()
        return verdict, newest if queue.of(event.tenant) + 2 <= most else None
    if 0 < limits.max_queued <= total:
        message = f"{total} requests wait already, which is the limit"
        verdict = Rejection(RejectReason.OVERLOADED, message, expected_wait(books, spec, queued))
        greedy = max(books.of_tenant.values(), key=len)
        newest = next(reversed(greedy.values()))
        return verdict, newest if mine + 2 <= len(greedy) else None
    return None


def cannot_start(
    books: SchedulerState, catalog: Catalog, spec: ModelSpec, now: float
) -> Rejection | None:
    """Why a worker of this model can't be started however long one waits, or None."""
    record, need = books.records.get(spec.name), books.need(spec)
    if record is not None and record.cool_until > now:
        message = f"{spec.name!r} failed: {record.reason}"
        return Rejection(RejectReason.START_FAILED, message, record.cool_until - now)
    if lack := missing(need, catalog.limits):
        return Rejection(RejectReason.TOO_LARGE, _too_large(spec, need, lack, catalog.limits))
    if missing(_fixed_for(books, spec, catalog.limits) + need, catalog.limits):
        return Rejection(RejectReason.TOO_LARGE, f"pinned models leave no room for {spec.name!r}")
    if other := _beside_pinned(books, spec, catalog.limits):
        message = f"{spec.name!r} can't be loaded beside {other!r}, which is pinned"
        return Rejection(RejectReason.INSUFFICIENT_MEMORY, message)
    return None


def _fixed_for(books: SchedulerState, spec: ModelSpec, limits: Limits) -> Capacity:
    """What those workers take that never go for this model."""
    if not limits.groups:
        return books.pinned()
    return books.total(
        r
        for r in books.staying()
        if r.spec.serving.pinned or is_spared(spec.name, r.spec.name, limits)
    )


def _beside_pinned(books: SchedulerState, spec: ModelSpec, limits: Limits) -> str:
    """A pinned model in whose presence this one must not be loaded, or nothing."""
    if not limits.groups:
        return ""
    pinned = (r.spec.name for r in books.staying() if r.spec.serving.pinned)
    return next((p for p in pinned if must_not_coexist(spec.name, p, limits)), "")


def _too_large(spec: ModelSpec, need: Capacity, lack: Capacity, limits: Limits) -> str:
    return (
        f"{spec.name!r} needs {_mib(need.bytes)}, {_mib(lack.bytes)} more than"
        f" the memory budget of {_mib(limits.budget_bytes)}"
    )


def no_room(spec: ModelSpec, short: Capacity, limits: Limits, retry_after: float) -> Rejection:
    """The verdict when a policy lets nobody go for others."""
    if short.bytes:
        what = f"{_mib(short.bytes)} of memory are missing"
    elif short.workers:
        what = f"{limits.max_resident} models are loaded, which is the limit"
    else:
        what = "its group does not let it be loaded beside those that are"
    message = f"no room for {spec.name!r}: {what}, and {limits.policy} lets nobody go for it"
    return Rejection(RejectReason.INSUFFICIENT_MEMORY, message, retry_after)


def not_free(spec: ModelSpec, need: int, free: int) -> Rejection:
    """The verdict when other programs hold the memory, and do not give it back."""
    message = (
        f"{spec.name!r} needs {_mib(need)} of memory and {_mib(free)} are free:"
        f" {_mib(need - free)} are missing, which other programs hold"
    )
    return Rejection(RejectReason.INSUFFICIENT_MEMORY, message, 10.0)


def _mib(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB"


def expected_wait(books: SchedulerState, spec: ModelSpec, ahead: int) -> float:
    """Seconds until `ahead` requests and one more are through, from the measured mean."""
    usual = books.record(spec.name).mean_request or 1.0
    return max(1.0, usual * (ahead + 1) / spec.serving.slots)
