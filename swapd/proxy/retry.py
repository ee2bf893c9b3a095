"""Forwarding of one request, retried on further workers until one has answered it."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from logging import Logger
from typing import Protocol

from swapd.domain.commands import RejectReason
from swapd.domain.models import ModelSpec
from swapd.leases import EXIT_GRACE, Lease, RejectedError, RequestOptions
from swapd.metrics import Metrics
from swapd.process.liveness import Liveness
from swapd.proxy.forward import ExitReason, WorkerDrainingError, WorkerFailedError
from swapd.supervisor import Supervisor
from swapd.system.memory_trim import MemoryTrimmer

DRAIN_TIMEOUT = 60.0
"""Seconds in which a draining worker has to finish its requests and exit."""


class RetryableExchange(Protocol):
    """A forwarded request, and the part of its response that the client has."""

    @property
    def is_retryable(self) -> bool:
        """True if another worker can serve it, with no more than a pause for the client."""

    @property
    def has_started(self) -> bool:
        """True if the client has a part of a stream that another worker must resume."""

    async def send(
        self, base_url: str, liveness: Liveness, resumable: bool, exit_reason: ExitReason
    ) -> int:
        """Send the request to a worker, forward the response, and return the tokens it took.

        `exit_reason` finds out whether the worker has just exited, where the response does not
        show it. Raises WorkerFailedError.
        """


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """A request in the form that is sent to a worker."""

    spec: ModelSpec
    path: str
    body: bytes
    options: RequestOptions
    needs_slot: bool = True
    resumable: bool = False
    """True if event ids are requested, with which another worker can resume the stream."""

    def fingerprint(self) -> str:
        """Return the hash by which repetitions of this request are recognised."""
        digest = hashlib.blake2b(f"{self.spec.name} {self.path} ".encode(), digest_size=16)
        digest.update(self.body)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class ForwardingContext:
    """The parts of a running swapd that forwarding a request needs."""

    supervisor: Supervisor
    metrics: Metrics
    heap: MemoryTrimmer
    log: Logger


async def forward_with_retry(
    context: ForwardingContext,
    proxy_request: ProxyRequest,
    exchange: RetryableExchange,
    while_waiting: Callable[[Awaitable[Lease]], Awaitable[Lease]] | None = None,
) -> None:
    """Forward a request to a worker, and to another one when its worker exits.

    `while_waiting` is awaited with the pending first lease and returns it, and may report progress.

    Raises RejectedError, and WorkerFailedError when the request can't be retried.
    """
    supervisor = context.supervisor
    fingerprint = proxy_request.fingerprint() if supervisor.tracks_fingerprints else ""
    context.heap.enter()
    try:
        pending = supervisor.admit(
            proxy_request.spec.name, proxy_request.needs_slot, proxy_request.options, fingerprint
        )
        lease = await (while_waiting(pending) if while_waiting is not None else pending)
        await _forward(context, proxy_request, exchange, lease)
    except RejectedError as error:
        if error.rejection.reason is RejectReason.POISON:
            name, fingerprint = proxy_request.spec.name, proxy_request.fingerprint()
            context.log.warning("%s: refused, fingerprint %s: %s", name, fingerprint, error)
        raise
    finally:
        context.heap.leave()


async def _forward(
    context: ForwardingContext,
    proxy_request: ProxyRequest,
    exchange: RetryableExchange,
    lease: Lease,
) -> None:
    """Forward with this lease and those that replace it. The last one is always released."""
    held: Lease | None = lease
    name, answered, tokens, fingerprint = proxy_request.spec.name, False, 0, ""
    try:
        while not answered:
            try:
                resumable = proxy_request.resumable and lease.handle.resumable
                if exchange.has_started:
                    if not resumable:
                        raise WorkerFailedError("the next worker can't resume the stream")
                    context.metrics.resumed(name)
                liveness = lease.handle.liveness
                tokens = await exchange.send(lease.base_url, liveness, resumable, lease.exit_reason)
                answered = True
            except WorkerFailedError as error:
                # Only the exit of a worker leads to a retry; a draining one needs longer for it.
                drains = isinstance(error, WorkerDrainingError) and lease.handle.resumable
                exit_reason = await lease.exit_reason(DRAIN_TIMEOUT if drains else EXIT_GRACE)
                reason = exit_reason or error
                context.log.warning("%s: a request lost its worker: %s", name, reason)
                fingerprint = proxy_request.fingerprint() if exit_reason else ""
                if not exit_reason or not exchange.is_retryable:
                    message = f"the worker of {name!r} failed: {reason}"
                    raise WorkerFailedError(message) from error
                # `reacquire` releases the old lease, also when it raises.
                held = None
                held = lease = await context.supervisor.reacquire(lease, fingerprint)
                fingerprint = ""
    finally:
        if held is not None:
            context.supervisor.release(held, answered, tokens, fingerprint)
