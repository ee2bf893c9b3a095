"""One request, given to workers one after the other until one has answered it."""

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

LEAVES_WITHIN = 60.0
"""Seconds in which a worker that takes nothing more has finished what it has."""


class RetryableExchange(Protocol):
    """A request on its way, and its answer as far as the client has it."""

    @property
    def goes_on(self) -> bool:
        """Whether another worker can serve it so that the client notices a pause at most."""

    @property
    def has_begun(self) -> bool:
        """Whether the client has a part of a stream that another worker is to go on with."""

    async def through(
        self, base_url: str, pulse: Liveness, resumable: bool, fate: ExitReason
    ) -> int:
        """Have this worker answer, or go on; the tokens that it took. Raises WorkerFailedError.

        `fate` tells whether the worker has just ended, where its answer can't tell.
        """


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """A request as it goes to a worker."""

    spec: ModelSpec
    path: str
    body: bytes
    wish: RequestOptions
    needs_slot: bool = True
    asks_ids: bool = False
    """Whether to ask for a stream with which another worker can go on."""

    def fingerprint(self) -> str:
        """By what it is known when it comes again."""
        told = hashlib.blake2b(f"{self.spec.name} {self.path} ".encode(), digest_size=16)
        told.update(self.body)
        return told.hexdigest()


@dataclass(frozen=True, slots=True)
class ForwardingContext:
    """The parts of a running swapd that forwarding a request needs."""

    supervisor: Supervisor
    metrics: Metrics
    heap: MemoryTrimmer
    log: Logger


async def forward_with_retry(
    context: ForwardingContext,
    passing: ProxyRequest,
    passage: RetryableExchange,
    meanwhile: Callable[[Awaitable[Lease]], Awaitable[Lease]] | None = None,
) -> None:
    """Have the request answered, by another worker if one ends under it.

    `meanwhile` waits for the first worker in place of this, and does something besides.

    Raises RefusedError, and WorkerFailedError when no other worker may be tried.
    """
    supervisor = context.supervisor
    known = passing.fingerprint() if supervisor.tracks_fingerprints else ""
    context.heap.enter()
    try:
        coming = supervisor.admit(passing.spec.name, passing.needs_slot, passing.wish, known)
        lease = await (meanwhile(coming) if meanwhile is not None else coming)
        await _through(context, passing, passage, lease)
    except RejectedError as error:
        if error.rejection.reason is RejectReason.POISON:
            name, known = passing.spec.name, passing.fingerprint()
            context.log.warning("%s: refused, fingerprint %s: %s", name, known, error)
        raise
    finally:
        context.heap.leave()


async def _through(
    context: ForwardingContext, passing: ProxyRequest, passage: RetryableExchange, lease: Lease
) -> None:
    """From this lease on; whatever happens, it and those that follow it are given back."""
    held: Lease | None = lease
    name, answered, tokens, known = passing.spec.name, False, 0, ""
    try:
        while not answered:
            try:
                resumable = passing.asks_ids and lease.handle.resumable
                if passage.has_begun:
                    if not resumable:
                        raise WorkerFailedError("the next one can't go on with what it began")
                    context.metrics.resumed(name)
                pulse = lease.handle.liveness
                tokens = await passage.through(lease.base_url, pulse, resumable, lease.exit_reason)
                answered = True
            except WorkerFailedError as error:
                leaves = isinstance(error, WorkerDrainingError) and lease.handle.resumable
                fate = await lease.exit_reason(LEAVES_WITHIN if leaves else EXIT_GRACE)
                context.log.warning("%s: a request lost its worker: %s", name, fate or error)
                known = passing.fingerprint() if fate else ""
                if not fate or not passage.goes_on:
                    message = f"the worker of {name!r} failed: {fate or error}"
                    raise WorkerFailedError(message) from error
                held = None
                held = lease = await context.supervisor.reacquire(lease, known)
                known = ""
    finally:
        if held is not None:
            context.supervisor.release(held, answered, tokens, known)
