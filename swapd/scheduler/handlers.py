"""Event handlers: apply one event to the scheduler state.

One function for each type of event. A handler changes what the event itself changes and emits
only commands that do not depend on the other models; everything that follows from the change is
decided by the settle pass (see `scheduler`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from swapd.domain import events as ev
from swapd.domain.commands import RejectReason
from swapd.domain.models import ModelProfile
from swapd.scheduler.admission import CLOSING, too_many
from swapd.scheduler.emitter import CHANGED, PRESSURE, Emitter
from swapd.scheduler.eviction import pressure_level
from swapd.scheduler.lifecycle import WORKING, Transition, WorkerState
from swapd.scheduler.queue import QueuedRequest
from swapd.scheduler.records import Rejection, WorkerRecord, mean
from swapd.scheduler.state import SchedulerState

BACKOFF = 1.0
"""Seconds for which a model is not started after a failed start; doubled with each further one."""
MAX_BACKOFF = 60.0
MAX_CRASHES = 2
"""Workers in a row that may exit without an answer before their model backs off."""
NO_PROFILE = ModelProfile()


def apply(state: SchedulerState, event: ev.Event, emit: Emitter) -> None:
    """Apply an event to the state."""
    HANDLERS[type(event)](state, event, emit)


# -- requests ----------------------------------------------------------------------------------


def request_arrived(state: SchedulerState, event: ev.RequestArrived, emit: Emitter) -> None:
    """Reject, assign or queue a new request."""
    # 1. Requests that cannot be served by any worker are rejected.
    spec = state.catalog.models.get(event.model)
    if spec is None:
        message = f"there is no model {event.model!r}"
        return emit.reject(event.request, Rejection(RejectReason.UNKNOWN_MODEL, message))
    if state.closing is not None:
        return emit.reject(event.request, CLOSING)
    request = QueuedRequest(
        event.request,
        state.next_position(),
        event.needs_slot,
        event.now,
        event.tenant,
        event.priority + spec.serving.priority,
        event.keep_alive,
        event.fingerprint,
    )
    if event.fingerprint and (poison := state.quarantine.check(request, event.now)):
        return emit.reject(event.request, poison)
    # 2. Requests that need no slot do not queue when the worker is ready.
    worker = state.serving(spec.name)
    if not event.needs_slot and worker is not None and worker.state is WorkerState.READY:
        return emit.assign(request, worker, event.now)
    # 3. In a full queue either this request or one of a greedier tenant is rejected.
    if rejected := too_many(state, spec, state.catalog.limits, event):
        rejection, instead = rejected
        if instead is None:
            return emit.reject(event.request, rejection)
        state.dequeue(instead.request)
        emit.reject(instead.request, rejection)
    # 4. All others queue; the settle pass may assign them at once.
    record = state.record(spec.name)
    if record.quiet_since is not None:
        record.mean_pause = mean(record.mean_pause, event.now - record.quiet_since)
        record.quiet_since = None
    return state.enqueue(spec.name, request)


def request_cancelled(state: SchedulerState, event: ev.RequestCancelled, _: Emitter) -> None:
    """Remove a queued request."""
    state.dequeue(event.request)


def request_finished(state: SchedulerState, event: ev.RequestFinished, emit: Emitter) -> None:
    """End an assignment and take its measurements."""
    # An answer without a number of tokens stays counted with the estimate.
    known = event.tokens or not event.answered
    assignment, had_slot = state.release(event.request, event.tokens if known else None)
    state.quarantine.finished(assignment.request, event.fingerprint, event.answered, event.now)
    worker = state.workers.get(assignment.worker)
    if worker is None:
        return
    record = state.record(assignment.model)
    if event.answered:
        worker.served += 1
        if worker.served == 1:
            # The first computation allocates memory that loading did not, and the worker may
            # have exited by the next regular sample.
            emit.sample_memory(event.now)
        record.failures, record.reason = 0, ""
    if event.tokens:
        record.mean_tokens = mean(record.mean_tokens, event.tokens)
    if had_slot:
        worker.last_used = event.now
        record.mean_request = mean(record.mean_request, event.now - assignment.since)
        if not state.in_flight(assignment.model):
            record.quiet_since = event.now


def request_retried(state: SchedulerState, event: ev.RequestRetried, emit: Emitter) -> None:
    """Queue a request again at its old position, or reject it as poison."""
    assignment, _ = state.release(event.request, 0.0)
    rejection = state.quarantine.retried(assignment.request, event.fingerprint, event.now)
    if rejection is not None:
        emit.reject(event.request, rejection)
    else:
        state.enqueue(assignment.model, assignment.request)


# -- workers -----------------------------------------------------------------------------------


def worker_ready(state: SchedulerState, event: ev.WorkerReady, emit: Emitter) -> None:
    """Let a worker serve, and drain the one that it replaces."""
    worker = state.workers[event.worker]
    if worker.state is WorkerState.STARTING:
        drain_predecessor(state, worker, emit)
    state.step(worker, Transition.BECAME_READY)
    if worker.state is WorkerState.READY:
        worker.ready_since = worker.last_used = event.now
        worker.deadline = None
        record = state.record(worker.spec.name)
        record.mean_load = mean(record.mean_load, event.now - worker.since)
        worker.reported_slots = event.slots
        emit.save_profile(worker)
        emit.sample_memory(event.now)


def worker_exited(state: SchedulerState, event: ev.WorkerExited, emit: Emitter) -> None:
    """Remove a worker; suspect its requests, or let its model back off."""
    worker = state.workers[event.worker]
    failed_start = worker.state is WorkerState.STARTING or bool(worker.start_failure)
    failed_serving = worker.state is WorkerState.READY and not worker.served
    # 1. The requests that it served may be the cause.
    served = [state.assigned[request].request for request in worker.busy]
    if event.killed_externally:
        failed_serving = False
        state.quarantine.worker_killed(served)
    elif worker.hang or worker.state in WORKING:
        # A crash caused by one request is no failure of the model.
        caused = state.quarantine.worker_crashed(served, worker.hang or event.reason)
        failed_serving &= not caused
    # 2. A replacement may have failed for want of the memory that its predecessor holds. Without
    #    that one, the next may succeed.
    if failed_start and worker.replacement:
        drain_predecessor(state, worker, emit)
        failed_start = False
    # 3. The worker is removed.
    state.step(worker, Transition.EXITED)
    state.timers.set(event.worker, math.inf)
    # 4. Its model backs off: after a failed start at once; after an external kill, or a crash
    #    that a request may have caused, only when it repeats.
    if state.closing is None and (failed_start or failed_serving):
        record = state.record(worker.spec.name)
        record.failures += 1
        record.reason = worker.start_failure or event.reason
        if (failed_start and not event.killed_externally) or record.failures > MAX_CRASHES:
            backoff = BACKOFF * 2.0 ** (record.failures - 1)
            record.backoff_until = event.now + min(backoff, MAX_BACKOFF)
    # 5. The memory is sampled while there are workers, and at once after an eviction for it.
    if not state.workers:
        state.sample_at = math.inf
    elif worker.reason == PRESSURE:
        emit.sample_memory(event.now)


def drain_predecessor(state: SchedulerState, worker: WorkerRecord, emit: Emitter) -> None:
    """Drain the worker that this one replaces, if it is a replacement."""
    predecessor = state.serving(worker.spec.name)
    if worker.replacement and predecessor is not None and predecessor.state is WorkerState.READY:
        emit.drain(predecessor, CHANGED)


def liveness_reported(state: SchedulerState, event: ev.LivenessReported, emit: Emitter) -> None:
    """Kill a busy worker that made no progress for its hang timeout."""
    worker = state.workers.get(event.worker)
    if worker is None or not worker.busy or worker.state not in WORKING:
        return
    limit = worker.spec.serving.hang_timeout
    worker.last_progress = max(worker.last_progress, event.last_progress)
    if limit and event.now >= worker.last_progress + limit:
        worker.hang = f"the worker hung: {limit:g} s without progress"
        emit.kill(worker, worker.hang)
    else:
        emit.watch(worker, event.now)
        state.touched.add(worker.spec.name)


# -- memory ------------------------------------------------------------------------------------


def memory_sampled(state: SchedulerState, event: ev.MemorySampled, emit: Emitter) -> None:
    """Record the memory of each ready worker and the pressure on the machine."""
    state.all_touched = True
    for worker_id, held in event.held.items():
        worker = state.workers.get(worker_id)
        if worker is None or worker.state is not WorkerState.READY:
            continue
        if state.record_memory(worker.spec.name, held):
            emit.save_profile(worker)
    state.pressure = pressure_level(event, state.limits)


def free_memory_reported(state: SchedulerState, event: ev.FreeMemoryReported, _: Emitter) -> None:
    """Record the free memory for the settle pass of this event."""
    state.memory_waiters.free = event.free


# -- the operator ------------------------------------------------------------------------------


def catalog_reloaded(state: SchedulerState, event: ev.CatalogReloaded, emit: Emitter) -> None:
    """Replace the catalog; keep every worker that may go on under it."""
    before, state.catalog = state.catalog, event.catalog
    state.all_touched = True
    # 1. Measurements of models with another launch spec are void.
    for model, old in before.models.items():
        new = event.catalog.models.get(model)
        if new is None or not old.same_process(new):
            state.forget(model)
        elif new != old:
            state.reset_failures(model)
    if event.profiles is not None:
        for model in event.catalog.models:
            state.restore_profile(model, event.profiles.get(model, NO_PROFILE))
    # 2. Workers with an equal launch spec go on under the new serving policy; ready ones with
    #    another one are outdated and replaced by the settle pass.
    for worker in list(state.staying()):
        new = event.catalog.models.get(worker.spec.name)
        if new is not None and worker.spec.same_process(new):
            worker.spec = new
            if worker.busy:
                worker.last_progress = event.now
                emit.watch(worker, event.now)
        elif worker.state is not WorkerState.READY:
            emit.stop(worker, CHANGED, event.now)
        elif new is None:
            emit.drain(worker, CHANGED)
        else:
            state.outdated[worker.worker] = None
    # 3. Limits and the interval of samples may differ.
    state.limits_changed()
    state.sample_at = math.inf
    if state.workers:
        emit.sample_memory(event.now)


def unload_requested(state: SchedulerState, event: ev.UnloadRequested, emit: Emitter) -> None:
    """Drain the ready workers of one model, or of all."""
    for worker in state.workers.values():
        requested = event.model is None or worker.spec.name == event.model
        if requested and worker.state is WorkerState.READY:
            emit.drain(worker, "unloaded by hand")


def shutdown_requested(state: SchedulerState, event: ev.ShutdownRequested, _: Emitter) -> None:
    """Set the deadline of the shutdown; a later one does not replace an earlier one."""
    deadline = event.deadline
    state.closing = deadline if state.closing is None else min(state.closing, deadline)


def timer_fired(state: SchedulerState, event: ev.TimerFired, emit: Emitter) -> None:
    """Clear the timer, and sample the memory if that is due."""
    state.timer = None
    if event.now >= state.sample_at:
        state.sample_at = math.inf
        emit.sample_memory(event.now)


HANDLERS: dict[type, Callable[[SchedulerState, Any, Emitter], None]] = {
    ev.RequestArrived: request_arrived,
    ev.RequestCancelled: request_cancelled,
    ev.RequestFinished: request_finished,
    ev.RequestRetried: request_retried,
    ev.WorkerReady: worker_ready,
    ev.WorkerExited: worker_exited,
    ev.LivenessReported: liveness_reported,
    ev.MemorySampled: memory_sampled,
    ev.FreeMemoryReported: free_memory_reported,
    ev.CatalogReloaded: catalog_reloaded,
    ev.UnloadRequested: unload_requested,
    ev.ShutdownRequested: shutdown_requested,
    ev.TimerFired: timer_fired,
}
"""Handler of each type of event."""
