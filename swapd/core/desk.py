"""The desk: what is known and wished, and the orders as they are given. No decisions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from swapd.core import eviction
from swapd.core.agenda import Agenda
from swapd.core.groups import belonging
from swapd.core.ledger import Ledger
from swapd.core.lifecycle import State, Step
from swapd.core.placement import Plan, candidate, leavable
from swapd.core.policy import POLICIES, Policy
from swapd.core.queue import Waiting
from swapd.core.refusals import Verdict
from swapd.core.resident import Resident
from swapd.core.scarcity import Scarcity
from swapd.core.suspects import Suspects
from swapd.domain import events as ev
from swapd.domain.commands import (
    Bring,
    Grant,
    Kill,
    Order,
    Refuse,
    Remember,
    Start,
    Stop,
    TakeSample,
)
from swapd.domain.models import Catalog, Learned, Limits, ModelSpec

PRESSURE = "memory pressure"
UNCLAIMED = "nobody waits for it any more"
CHANGED = "its configuration changed"
NOTHING: Mapping[str, Learned] = MappingProxyType({})


class Desk:
    """The books and what stands beside them. An order is in the books as soon as it is given."""

    def __init__(self, catalog: Catalog, learned: Mapping[str, Learned] = NOTHING) -> None:
        self._catalog = catalog
        self._books = Ledger()
        for model, known in learned.items():
            self._books.recall(model, known)
        self._orders: list[Order] = []
        self._agenda = Agenda()
        self._suspects = Suspects()
        self._plan = Plan(version=-1)
        self._look_at_all = False
        self._wake: float | None = None
        self._sample_at = math.inf
        self._closing: float | None = None
        self._scarcity = Scarcity()
        self._outdated: dict[ev.WorkerId, None] = {}
        """Workers that run by what their models' entries said before."""
        self._ahead = ""
        """The model whose files were last read ahead, while it waits."""

    # -- orders --------------------------------------------------------------------------------

    def _refuse(self, request: ev.RequestId, verdict: Verdict) -> None:
        self._orders.append(Refuse(request, verdict.why, verdict.message, verdict.retry_after))

    def _refuse_all(self, model: str, verdict: Verdict) -> None:
        for request in list(self._books.queues[model]):
            self._books.dequeue(request)
            self._refuse(request, verdict)

    def _give(self, waiting: Waiting, resident: Resident, now: float) -> None:
        if waiting.needs_slot and not resident.busy:
            resident.sign, resident.alone = now, waiting.alone
            self._watch(resident, now)
        self._books.grant(waiting, resident, now)
        self._orders.append(Grant(waiting.request, resident.worker))

    def _watch(self, resident: Resident, now: float) -> None:
        """See to it that somebody looks whether it makes progress, twice within the time-out."""
        limit = resident.spec.hang_timeout
        if limit and resident.look_at == math.inf:
            resident.look_at = min(now + limit / 2, resident.sign + limit)

    def _start(self, spec: ModelSpec, now: float, heir: bool = False) -> None:
        resident = self._books.admit(spec, now, heir)
        # Those that never go for others may leave no room for some who wait.
        self._look_at_all |= spec.pinned or bool(self._limits.groups)
        self._orders.append(Start(resident.worker, spec))
        self._bring_others(spec.name)

    def _bring_others(self, model: str) -> None:
        """Ask for those that belong together with a model that a client wants to use.

        Not for those of one that was itself brought so: where there is not room for all, they
        would go for each other without end.
        """
        queue = self._books.queues.get(model)
        if queue is None or queue.guests == len(queue):
            return
        for other in sorted(belonging(model, self._limits)):
            if self._books.serving(other) is None and other not in self._books.queues:
                self._orders.append(Bring(other))

    def _stop(self, resident: Resident, because: str, now: float) -> None:
        self._books.step(resident, Step.STOP)
        resident.because = because
        resident.deadline = now + resident.spec.stop_grace
        self._orders.append(Stop(resident.worker, because))
        heir = self._books.serving(resident.spec.name)
        if heir and heir.state is State.STARTING and resident.spec.name not in self._books.queues:
            self._stop(heir, UNCLAIMED, now)

    def _drain(self, resident: Resident) -> None:
        self._books.step(resident, Step.DRAIN)
        resident.because = CHANGED

    def _kill(self, resident: Resident, because: str) -> None:
        self._books.step(resident, Step.KILL)
        resident.deadline = None
        self._orders.append(Kill(resident.worker, because, bool(resident.hung)))

    def _remember(self, resident: Resident) -> None:
        learned = self._books.learned(resident.spec.name)
        self._orders.append(Remember(resident.worker, learned))

    def _sample_soon(self, now: float) -> None:
        limits = self._limits
        if limits.threshold_percent or limits.critical_percent or limits.budget_bytes:
            self._sample_at = now + limits.interval
            self._orders.append(TakeSample())

    # -- questions -----------------------------------------------------------------------------

    @property
    def _limits(self) -> Limits:
        return self._catalog.limits

    @property
    def _policy(self) -> Policy:
        return POLICIES[self._limits.policy]

    def _workers_of(self, models: Iterable[str]) -> list[Resident]:
        """The workers alive of these models, oldest first."""
        found = [r for model in models for r in self._books.of_model(model)]
        if len(found) > 1:
            found.sort(key=lambda r: r.worker)
        return found

    def _first_to_go(self, now: float, busy_too: bool = False) -> Resident | None:
        """The idle worker that is worth least, or a busy one if that may be; or None."""
        books = self._books
        may_go = (candidate(books, r, now) for r in leavable(books))
        victim = eviction.first_to_go(self._policy, may_go, busy_too)
        return None if victim is None else books.residents[victim]

    def _lasts_until(self, resident: Resident) -> float:
        """When idleness ends it; infinite when it is not idle, or stays."""
        if not resident.idle:
            return math.inf
        return resident.last_used + resident.lasts(self._policy.heeds_time)

    def _due(self, resident: Resident) -> float:
        """When the pass must look at this worker though nothing has happened."""
        if resident.state is State.KILLED:
            return math.inf
        due = self._lasts_until(resident) if resident.deadline is None else resident.deadline
        return min(due, resident.look_at)
