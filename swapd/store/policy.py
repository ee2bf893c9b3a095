"""Disk cache of model files, with the same eviction policies as workers in memory.

A decision only reserves space for the new file and marks the files to delete. A file is in the
cache when its transfer has succeeded, and out of it when it is deleted; the executor of a
decision reports both. Files that a worker has loaded are never evicted.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from swapd.scheduler import eviction
from swapd.scheduler.eviction import POLICIES, EvictionCandidate
from swapd.scheduler.forecast import Forecast, RateEstimator
from swapd.scheduler.records import Capacity


class StoreAction(Enum):
    """Source of a request's model."""

    ALREADY_LOADED = "already_loaded"
    LOCAL = "load_from_local_store"
    STORE = "load_from_store"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Limits of the cache. 0: no limit."""

    policy: str = "lru"
    max_files: int = 0
    max_bytes: int = 0
    ttl: float = 0.0
    """Seconds without use after which a file is deleted, under policies with a TTL."""


@dataclass(frozen=True, slots=True)
class StoreDecision:
    """Decision on a request: delete these files, then load according to `action`."""

    action: StoreAction
    evicted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """The record of one request."""

    ts: str
    policy: str
    model: str
    action: StoreAction
    decision_ms: float
    worker_ms: float
    cached: tuple[str, ...]
    evicted: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"ts={self.ts} policy={self.policy} model={self.model} action={self.action.value}"
            f" decision_ms={self.decision_ms:.2f} worker_ms={self.worker_ms:.1f}"
            f" cached=[{','.join(self.cached)}] evicted=[{','.join(self.evicted)}]"
        )


@dataclass(slots=True)
class _File:
    bytes: int
    fetch_seconds: float
    last_used: float
    going: bool = False


class DiskStore:
    """The books of one host's files."""

    def __init__(self, terms: StoreLimits) -> None:
        self._terms = terms
        self._policy = POLICIES[terms.policy]
        self._files: dict[str, _File] = {}
        self._coming: dict[str, int] = {}
        self._demand: dict[str, RateEstimator] = {}
        self._uses: dict[str, int] = {}
        self._forecast = Forecast()

    @property
    def cached(self) -> tuple[str, ...]:
        """Files that are there and stay, by name."""
        return tuple(sorted(name for name, file in self._files.items() if not file.going))

    def decide(self, model: str, size: int, loaded: Collection[str], now: float) -> StoreDecision:
        """Decide on a request for this model, of this size in bytes."""
        self._uses[model] = self._uses.get(model, 0) + 1
        self._forecast.note(self._demand.setdefault(model, RateEstimator()), now)
        file = self._files.get(model)
        if file is not None and not file.going:
            file.last_used = now
        swept = self._sweep({*loaded, model}, now)
        if model in loaded:
            return StoreDecision(StoreAction.ALREADY_LOADED, swept)
        if file is not None and not file.going:
            return StoreDecision(StoreAction.LOCAL, swept)
        if model in self._coming:
            return StoreDecision(StoreAction.STORE, swept)
        room = self._make_room(size, {*loaded, model}, now)
        if room is None:
            return StoreDecision(StoreAction.REJECTED, swept)
        self._coming[model] = size
        return StoreDecision(StoreAction.STORE, swept + room)

    def arrived(self, model: str, seconds: float, now: float) -> None:
        """The transfer has succeeded, and took so long: the file is there."""
        self._files[model] = _File(self._coming.pop(model), seconds, now)

    def failed(self, model: str) -> None:
        """The transfer has failed, and nothing is left of it: its room is free again."""
        del self._coming[model]

    def deleted(self, model: str) -> None:
        """The file is off the disk."""
        del self._files[model]

    def _sweep(self, used: set[str], now: float) -> tuple[str, ...]:
        """Files whose time is over."""
        if not (self._policy.uses_ttl and self._terms.ttl):
            return ()
        over = [
            name
            for name, file in self._files.items()
            if not file.going and name not in used and now >= file.last_used + self._terms.ttl
        ]
        return self._mark(over)

    def _make_room(self, size: int, used: set[str], now: float) -> tuple[str, ...] | None:
        """Files that go for one that comes; None when there is no room for it."""
        terms, policy = self._terms, self._policy
        held = sum(f.bytes for f in self._files.values() if not f.going)
        held += sum(self._coming.values())
        count = len(self.cached) + len(self._coming)
        short = Capacity(
            max(0, count + 1 - terms.max_files) if terms.max_files else 0,
            max(0, held + size - terms.max_bytes) if terms.max_bytes else 0,
        )
        if short and not policy.evicts:
            return None
        may_go = [
            self._candidate(name, file, now)
            for name, file in self._files.items()
            if not file.going and name not in used
        ]
        chosen = eviction.choose(policy, short, may_go)
        return None if chosen is None else self._mark(chosen)

    def _candidate(self, name: str, file: _File, now: float) -> EvictionCandidate[str]:
        likely = self._forecast.probability(self._demand[name], now)
        uses, seconds = self._uses[name], file.fetch_seconds
        return EvictionCandidate(name, file.bytes, False, file.last_used, uses, seconds, likely)

    def _mark(self, names: Collection[str]) -> tuple[str, ...]:
        for name in names:
            self._files[name].going = True
        return tuple(names)
