"""Placement plan: which wanted models get capacity, and which workers are evicted for them.

The functions here only read the state. The plan is executed by step 6 of the settle pass
(see `scheduler`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from swapd.domain.events import WorkerId
from swapd.domain.models import Limits, ModelSpec
from swapd.scheduler import eviction
from swapd.scheduler.eviction import POLICIES, EvictionCandidate
from swapd.scheduler.groups import is_spared, must_not_coexist
from swapd.scheduler.lifecycle import LEAVING, WorkerState
from swapd.scheduler.queue import Rank
from swapd.scheduler.records import Capacity, PlacementPlan, WorkerRecord, missing
from swapd.scheduler.state import SchedulerState
from swapd.scheduler.turns import keeps_place_until


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A model that fits only after evictions."""

    rank: Rank
    spec: ModelSpec
    short: Capacity
    """Capacity that is missing, with its own reserved."""
    conflicting: frozenset[WorkerId]
    """Workers that must exit before it is started, by the rules of its group."""


@dataclass(frozen=True, slots=True)
class _Eviction:
    """Victims for one model, and the times at which other workers become victims."""

    victims: tuple[WorkerId, ...] | None
    """None: all that may be evicted now are not enough."""
    later: list[float] = field(default_factory=list)


def is_valid(plan: PlacementPlan, state: SchedulerState, now: float) -> bool:
    """Return True if a plan made now would be equal, because its sources have not changed."""
    return plan.version == state.version and now < plan.valid_until


def make_plan(state: SchedulerState, now: float) -> PlacementPlan:
    """Give each wanted model its capacity, in the order of ranks.

    Capacity that is not free yet is reserved, so that no younger model takes it meanwhile. When
    all workers that may be evicted are not enough for one model, the models behind it get none
    either, and the plan ends.
    """
    plan = PlacementPlan(state.version)
    if not state.wanted:
        return plan
    limits = state.catalog.limits
    # Both amounts include the capacity that the plan reserves. `taken` counts all workers alive,
    # `staying` those that are neither leaving nor victims of the plan.
    taken, staying = state.taken(), state.staying_capacity()
    placed: list[str] = []
    for rank, model in state.wanted:
        spec = state.catalog.models[model]
        need = state.need(spec)
        conflicting = _conflicting(state, limits, spec) if limits.groups else []
        taken += need
        staying += need
        fits = not missing(taken, limits)
        # There are three cases.
        # 1. The model fits beside all workers alive and all models before it: start it.
        if fits and not conflicting and not (limits.groups and _excluded(placed, spec, limits)):
            plan.start.append(spec)
            placed.append(model)
            continue
        # 2. It fits when workers have gone, which are leaving or have to be evicted. If no worker
        #    may be evicted under the policy, it is rejected and its capacity not reserved.
        short = missing(staying, limits)
        remaining = frozenset(
            r.worker for r in conflicting if r.state not in LEAVING and r.worker not in plan.victims
        )
        if (short or remaining) and not POLICIES[limits.policy].evicts:
            plan.rejected.append((spec, short))
            taken, staying = taken - need, staying - need
        elif short or remaining:
            wanted = _Wanted(rank, spec, short, remaining)
            found = _choose_victims(state, plan, wanted, now)
            if found.later:
                plan.valid_until = min(plan.valid_until, *found.later)
            if found.victims is None:
                if found.later:
                    plan.replan_at = min(plan.replan_at, *found.later)
                if not fits:
                    # 3. It does not fit for now, and keeps all models behind it waiting.
                    plan.horizon = (rank[0], rank[1] + 1)
                    break
            else:
                for worker in found.victims:
                    plan.victims[worker] = model
                    staying -= state.need(state.workers[worker].spec)
        placed.append(model)
    return plan


def _conflicting(state: SchedulerState, limits: Limits, spec: ModelSpec) -> list[WorkerRecord]:
    """Return the workers alive that must exit before one of `spec` is started."""
    return [
        r
        for r in state.workers.values()
        if must_not_coexist(spec.name, r.spec.name, limits) and not r.spec.serving.pinned
    ]


def _excluded(placed: list[str], spec: ModelSpec, limits: Limits) -> bool:
    """Return True if a model before it, started or with reserved capacity, excludes this one."""
    return any(
        must_not_coexist(spec.name, other, limits) or must_not_coexist(other, spec.name, limits)
        for other in placed
    )


def _choose_victims(
    state: SchedulerState, plan: PlacementPlan, wanted: _Wanted, now: float
) -> _Eviction:
    """Choose the victims for a model whose capacity is reserved already."""
    limits, short = state.catalog.limits, wanted.short
    # 1. Workers past their time slice may be evicted now, the others later.
    candidates: list[EvictionCandidate[WorkerId]] = []
    later: list[float] = []
    for worker in evictable(state):
        if worker.worker in plan.victims:
            continue
        if limits.groups and is_spared(wanted.spec.name, worker.spec.name, limits):
            continue
        until = keeps_place_until(state, worker, wanted.spec, wanted.rank, limits)
        if until <= now:
            candidates.append(candidate(state, worker, now))
        else:
            later.append(until)
    # 2. Conflicting workers are victims in any case; all of them must be among the candidates.
    forced = [c for c in candidates if c.key in wanted.conflicting]
    if len(forced) != len(wanted.conflicting):
        return _Eviction(None, later)
    if forced:
        candidates = [c for c in candidates if c.key not in wanted.conflicting]
        short -= sum((Capacity(1, c.bytes) for c in forced), Capacity())
    # 3. The policy chooses the others, for the capacity that is still missing.
    chosen = eviction.choose(POLICIES[limits.policy], short, candidates)
    if chosen is None:
        return _Eviction(None, later)
    return _Eviction((*(c.key for c in forced), *chosen), later)


def evictable(state: SchedulerState) -> list[WorkerRecord]:
    """Return the workers that may be evicted: ready ones that are not pinned."""
    return [
        r
        for r in state.workers.values()
        if r.state is WorkerState.READY and not r.spec.serving.pinned
    ]


def candidate(state: SchedulerState, r: WorkerRecord, now: float) -> EvictionCandidate[WorkerId]:
    """Return the values of a worker that policies compare.

    For a worker in use only those that do not change with its requests: once chosen, a busy
    worker is to finish and exit, and not to be spared for a request that it finishes meanwhile.
    """
    name = r.spec.name
    record, in_use = state.record(name), bool(r.busy) or name in state.queues
    return EvictionCandidate(
        key=r.worker,
        bytes=record.measured or r.spec.serving.need_bytes,
        in_use=in_use,
        last_used=r.ready_since if in_use else r.last_used,
        uses=0 if in_use else record.uses,
        load_seconds=record.mean_load or 0.0,
        next_use_probability=state.forecast.probability(record.demand, now),
        weight=r.spec.serving.weight,
    )
