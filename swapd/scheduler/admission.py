"""Reasons for which a request is rejected: pure functions of the scheduler state."""

from __future__ import annotations

from swapd.domain.commands import RejectReason
from swapd.domain.events import RequestArrived
from swapd.domain.models import Catalog, Limits, ModelSpec
from swapd.scheduler.groups import is_spared, must_not_coexist
from swapd.scheduler.queue import QueuedRequest
from swapd.scheduler.records import Capacity, Rejection, missing
from swapd.scheduler.state import SchedulerState

CLOSING = Rejection(RejectReason.CLOSING, "swapd is shutting down", 5.0)


def too_many(
    state: SchedulerState, spec: ModelSpec, limits: Limits, event: RequestArrived
) -> tuple[Rejection, QueuedRequest | None] | None:
    """Return a rejection if a bound on queued requests is reached, and the request it applies to.

    That is the newest request of the tenant with most of them, if its tenant keeps no fewer than
    the tenant of the new request has then; otherwise the new request itself (None).
    """
    # Bound 1: requests of the tenant, over all models.
    mine = len(state.by_tenant.get(event.tenant, ()))
    queue, total = state.queues.get(spec.name), len(state.queued)
    queued = len(queue) if queue else 0
    if 0 < limits.max_per_tenant <= mine:
        message = f"{mine} requests of this tenant wait already, which is the limit"
        return Rejection(
            RejectReason.TENANT_FULL, message, expected_wait(state, spec, queued)
        ), None
    # Bound 2: requests for the model.
    if queue is not None and queued >= spec.serving.max_queue:
        rejection = Rejection(
            RejectReason.QUEUE_FULL,
            f"{queued} requests wait for {spec.name!r} already, which is the limit",
            expected_wait(state, spec, queued),
        )
        most, newest = queue.largest_tenant()
        return rejection, newest if queue.of(event.tenant) + 2 <= most else None
    # Bound 3: requests over all models and tenants.
    if 0 < limits.max_queued <= total:
        message = f"{total} requests wait already, which is the limit"
        rejection = Rejection(RejectReason.OVERLOADED, message, expected_wait(state, spec, queued))
        largest = max(state.by_tenant.values(), key=len)
        newest = next(reversed(largest.values()))
        return rejection, newest if mine + 2 <= len(largest) else None
    return None


def cannot_start(
    state: SchedulerState, catalog: Catalog, spec: ModelSpec, now: float
) -> Rejection | None:
    """Return the reason for which no worker of this model can be started, or None.

    Only reasons that further waiting does not remove, and the backoff after a failed start.
    """
    # 1. The model backs off after a failed start.
    record, need = state.records.get(spec.name), state.need(spec)
    if record is not None and record.backoff_until > now:
        message = f"{spec.name!r} failed: {record.reason}"
        return Rejection(RejectReason.START_FAILED, message, record.backoff_until - now)
    # 2. It is larger than the whole budget.
    if lack := missing(need, catalog.limits):
        return Rejection(RejectReason.TOO_LARGE, _too_large(spec, need, lack, catalog.limits))
    # 3. It does not fit beside the workers that are never evicted for it.
    if missing(_fixed_for(state, spec, catalog.limits) + need, catalog.limits):
        return Rejection(
            RejectReason.TOO_LARGE, f"pinned models leave no capacity for {spec.name!r}"
        )
    # 4. It must not be loaded beside one of them.
    if other := _beside_pinned(state, spec, catalog.limits):
        message = f"{spec.name!r} cannot be loaded beside {other!r}, which is pinned"
        return Rejection(RejectReason.INSUFFICIENT_MEMORY, message)
    return None


def _fixed_for(state: SchedulerState, spec: ModelSpec, limits: Limits) -> Capacity:
    """Return the capacity of the workers that are never evicted for this model."""
    if not limits.groups:
        return state.pinned_capacity()
    return state.total(
        r
        for r in state.staying()
        if r.spec.serving.pinned or is_spared(spec.name, r.spec.name, limits)
    )


def _beside_pinned(state: SchedulerState, spec: ModelSpec, limits: Limits) -> str:
    """Return a loaded pinned model that excludes this one, or an empty string."""
    if not limits.groups:
        return ""
    pinned = (r.spec.name for r in state.staying() if r.spec.serving.pinned)
    return next((p for p in pinned if must_not_coexist(spec.name, p, limits)), "")


def _too_large(spec: ModelSpec, need: Capacity, lack: Capacity, limits: Limits) -> str:
    return (
        f"{spec.name!r} needs {_mib(need.bytes)}, {_mib(lack.bytes)} more than"
        f" the memory budget of {_mib(limits.budget_bytes)}"
    )


def no_capacity(spec: ModelSpec, short: Capacity, limits: Limits, retry_after: float) -> Rejection:
    """Return the rejection under a policy that evicts no worker for others."""
    if short.bytes:
        cause = f"{_mib(short.bytes)} of memory are missing"
    elif short.workers:
        cause = f"{limits.max_resident} models are loaded, which is the limit"
    else:
        cause = "its group excludes a model that is loaded"
    message = (
        f"there is no capacity for {spec.name!r}: {cause},"
        f" and the policy {limits.policy} evicts no model"
    )
    return Rejection(RejectReason.INSUFFICIENT_MEMORY, message, retry_after)


def memory_held_elsewhere(spec: ModelSpec, need: int, short: int) -> Rejection:
    """Return the rejection when other programs hold the memory and do not free it."""
    message = (
        f"{spec.name!r} needs {_mib(need)} of memory and {_mib(need - short)} are free:"
        f" {_mib(short)} are missing, which other programs hold"
    )
    return Rejection(RejectReason.INSUFFICIENT_MEMORY, message, 10.0)


def _mib(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB"


def expected_wait(state: SchedulerState, spec: ModelSpec, ahead: int) -> float:
    """Return the expected seconds for `ahead` requests and one more, by the measured mean."""
    usual = state.record(spec.name).mean_request or 1.0
    return max(1.0, usual * (ahead + 1) / spec.serving.slots)
