"""The books: who waits, who runs, what each is known to take. Kept by the scheduler alone.

Beside the facts themselves stand indices over them, so that an event costs what it changes and
not what there is: workers by model, models that wait for a worker by rank, sums. Each is kept in
the method that changes what it is made of. Two notes tell the settle pass what it may leave out:
`touched`, the models for which anything changed, and `version`, which grows with each change that
a plan for the room depends on.

A worker in the books.

Room: what workers take and what the limits leave, in workers and in bytes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from swapd.domain.events import RequestId, WorkerId
from swapd.domain.models import Limits, ModelProfile, ModelSpec
from swapd.scheduler.forecast import Forecast, RateEstimator
from swapd.scheduler.lifecycle import LEAVING, SERVING, Transition, WorkerState, advance
from swapd.scheduler.queue import QueuedRequest, Rank, RequestQueue, put


@dataclass(slots=True)
class WorkerRecord:
    """A worker whose process is alive or being started."""

    worker: WorkerId
    spec: ModelSpec
    since: float
    deadline: float | None
    """When it is killed: if it has not come up by then, or not gone."""
    state: WorkerState = WorkerState.STARTING
    told_slots: int = 0
    replacement: bool = False
    """It is to take the place of a worker of its model that is ready, once it is so itself."""
    alone: bool = False
    """What it serves, if anything, is to be served alone."""
    busy: set[RequestId] = field(default_factory=set)
    served: int = 0
    up_since: float = -math.inf
    """When it came up."""
    last_used: float = 0.0
    keep_alive: float | None = None
    """What the last request that said so wants instead of the model's time to live."""
    last_progress: float = 0.0
    """When it was last known to make progress, or got something to do."""
    look_at: float = math.inf
    """When somebody is to look whether it makes progress."""
    reason: str = ""
    """Why it was asked to go."""
    late: str = ""
    """Says that it was killed because it did not come up in time."""
    hung: str = ""
    """Says that it was killed because it made no progress."""

    def step(self, step: Transition) -> None:
        self.state = advance(self.state, step)

    @property
    def idle(self) -> bool:
        return self.state is WorkerState.READY and not self.busy

    @property
    def is_coming(self) -> bool:
        """Whether it has not come up: how much it holds already is not known."""
        return self.up_since == -math.inf

    @property
    def slots(self) -> int:
        """As many as the worker itself has told, else as many as its model's entry says."""
        return self.told_slots or self.spec.serving.slots

    @property
    def free_slots(self) -> int:
        if self.state is not WorkerState.READY or (self.alone and self.busy):
            return 0
        return self.slots - len(self.busy)

    def lasts(self, heeds_time: bool) -> float:
        """Seconds of idleness after which it goes; infinite: it stays.

        A request's wish counts under every policy, the model's time to live under those that
        heed it.
        """
        if self.spec.serving.pinned:
            return math.inf
        if self.keep_alive is not None:
            return self.keep_alive if self.keep_alive >= 0 else math.inf
        return self.spec.serving.ttl if self.spec.serving.ttl and heeds_time else math.inf


class Capacity(NamedTuple):
    """An amount of the two things that run out: places for workers, and bytes.

    A tuple, because a plan makes many of them; but what is added are amounts.
    """

    workers: int = 0
    bytes: int = 0

    def __add__(self, other: Capacity) -> Capacity:  # type: ignore[override]
        return Capacity(self[0] + other[0], self[1] + other[1])

    def __sub__(self, other: Capacity) -> Capacity:
        return Capacity(self[0] - other[0], self[1] - other[1])

    def __bool__(self) -> bool:
        return self[0] > 0 or self[1] > 0


NOTHING = Capacity()


def missing(taken: Capacity, limits: Limits) -> Capacity:
    """What `taken` has above the limits, never negative; falsy when all of it fits."""
    workers = taken[0] - limits.max_resident if limits.max_resident else 0
    size = taken[1] - limits.budget_bytes if limits.budget_bytes else 0
    if workers <= 0 and size <= 0:
        return NOTHING
    return Capacity(max(0, workers), max(0, size))


TOKENS = 256.0
"""What a request is taken for until any of its model's has told its tokens."""

NEVER: Rank = (math.inf, 0)
"""The rank of nobody."""


@dataclass(slots=True)
class ModelRecord:
    """What a model's past tells. Means forget: a fifth of each is the newest."""

    demand: RateEstimator = field(default_factory=RateEstimator)
    uses: int = 0
    """Requests granted, ever."""
    measured: int = 0
    """Most bytes that a worker of it was seen to hold."""
    failures: int = 0
    """Failed starts in a row."""
    cool_until: float = 0.0
    put_out: float = -math.inf
    """When its worker last went for a younger request, its turn being over."""
    reason: str = ""
    mean_request: float | None = None
    """Seconds from grant to end."""
    mean_tokens: float | None = None
    """Tokens of a request, of those that told."""
    mean_load: float | None = None
    """Seconds from start to ready."""
    mean_pause: float | None = None
    """Seconds from the end of all its requests to the next one's arrival."""
    quiet_since: float | None = None
    """When the last of its requests ended; None while there are any, or never were."""


@dataclass(slots=True)
class Assignment:
    """A request that a worker serves."""

    worker: WorkerId
    model: str
    since: float
    tenant: str
    priority: int
    tokens: float
    """Counted for its tenant so far."""
    waiting: QueuedRequest
    """As it waited; if its worker ends, it does so again."""


def mean(before: float | None, value: float) -> float:
    """A moving mean with one more value in it."""
    return value if before is None else before + 0.2 * (value - before)


class SchedulerState:
    """Residents, queues and records, with the questions that the scheduler asks of them."""

    def __init__(self) -> None:
        self.residents: dict[WorkerId, WorkerRecord] = {}
        self.queues: dict[str, RequestQueue] = {}
        self.waiting: dict[RequestId, tuple[str, QueuedRequest]] = {}
        self.of_tenant: dict[str, dict[RequestId, QueuedRequest]] = {}
        self.granted: dict[RequestId, Assignment] = {}
        self.records: dict[str, ModelRecord] = {}
        self.forecast = Forecast()
        self.wanted: list[tuple[Rank, str]] = []
        """Models with a queue and no worker that serves it, by the first rank in their queue."""
        self.touched: set[str] = set()
        self.version = 0
        self.horizon = NEVER
        """Up to which rank the plan depends on who waits for room."""
        self._ranks: dict[str, Rank] = {}
        self._wishes: dict[str, Rank] = {}
        self._serving: dict[str, WorkerRecord] = {}
        self._of_model: dict[str, list[WorkerRecord]] = {}
        self._sums: tuple[Capacity, Capacity, Capacity] | None = None
        self._places = 0
        self._workers = 0

    # -- requests ------------------------------------------------------------------------------

    def enqueue(self, model: str, waiting: QueuedRequest) -> None:
        """Let a request wait for this model."""
        if not self._in_use(model):
            self.version += 1
        queue = self.queues.get(model)
        if queue is None or model in self._serving:
            # Where others wait for a worker already, one more gives the pass nothing to do.
            self.touched.add(model)
        if queue is None:
            queue = self.queues[model] = RequestQueue(self.record(model).mean_tokens or TOKENS)
        queue.add(waiting)
        self.waiting[waiting.request] = (model, waiting)
        put(self.of_tenant.setdefault(waiting.tenant, {}), waiting)
        if waiting.rank < self._ranks.get(model, NEVER):
            self._rank(model)

    def next_place(self) -> int:
        """The next place in the order of arrival."""
        self._places += 1
        return self._places

    def dequeue(self, request: RequestId) -> None:
        """Take a waiting request out; a queue that falls empty is dropped."""
        model, waiting = self.waiting.pop(request)
        queue = self.queues[model]
        queue.remove(request)
        mine = self.of_tenant[waiting.tenant]
        del mine[request]
        if not mine:
            del self.of_tenant[waiting.tenant]
        if not queue:
            del self.queues[model]
            if not self._in_use(model):
                self.version += 1
        self.touched.add(model)
        self._rank(model)

    def grant(self, waiting: QueuedRequest, resident: WorkerRecord, now: float) -> None:
        """Take the slot, if it needs one, and count it for its model and its tenant."""
        model, record, tokens = resident.spec.name, self.record(resident.spec.name), 0.0
        if waiting.keep_alive is not None:
            resident.keep_alive = waiting.keep_alive
            self.touched.add(model)
        if waiting.needs_slot:
            resident.busy.add(waiting.request)
            record.uses += 1
            self.forecast.note(record.demand, now)
            tokens = record.mean_tokens or TOKENS
        if waiting.request in self.waiting:
            self.queues[model].grant(waiting, tokens, now)
            self.dequeue(waiting.request)
        self.granted[waiting.request] = Assignment(
            resident.worker, model, now, waiting.tenant, waiting.priority, tokens, waiting
        )

    def give_back(self, request: RequestId, tokens: float | None) -> tuple[Assignment, bool]:
        """A granted request is over; tokens it took, None if not known. Whether it had a slot."""
        granted = self.granted.pop(request)
        queue = self.queues.get(granted.model)
        if queue is not None and tokens is not None and granted.tokens:
            queue.correct(granted.priority, granted.tenant, tokens - granted.tokens)
        resident = self.residents.get(granted.worker)
        if resident is None or request not in resident.busy:
            return granted, False
        resident.busy.remove(request)
        if not self._in_use(granted.model):
            self.version += 1
        self.touched.add(granted.model)
        return granted, True

    # -- workers -------------------------------------------------------------------------------

    def admit(self, spec: ModelSpec, now: float, replacement: bool = False) -> WorkerRecord:
        """A new resident, starting; an heir beside the one that serves its model."""
        self._workers += 1
        resident = WorkerRecord(
            self._workers, spec, now, now + spec.serving.start_timeout, replacement=replacement
        )
        self.residents[resident.worker] = resident
        self._of_model.setdefault(spec.name, []).append(resident)
        self._resided(spec.name)
        return resident

    def step(self, resident: WorkerRecord, step: Transition) -> None:
        """A step in a worker's life. One that has gone is no longer in the books."""
        resident.step(step)
        name = resident.spec.name
        if step is Transition.EXITED:
            del self.residents[resident.worker]
            self._of_model[name].remove(resident)
            if not self._of_model[name]:
                del self._of_model[name]
        self._resided(name)

    def put_behind(self, model: str, wanted: str, now: float) -> None:
        """The worker of a model is about to go for one that is wanted, whoever is older."""
        if model in self.queues and self.rank(model) < self._wishes.get(wanted, NEVER):
            self.record(model).put_out = now

    def measured(self, model: str, held: int) -> bool:
        """A worker of this model was seen to hold so much: the most ever seen is its need.

        Whether that is now more than before.
        """
        record = self.record(model)
        grown = held > record.measured
        if grown:
            record.measured = held
            self._resided(model)
        return grown

    def recall(self, model: str, learned: ModelProfile) -> None:
        """This is what was learned of the model, at another time too."""
        record = self.record(model)
        record.mean_load = learned.load_seconds or None
        if record.measured != learned.bytes:
            record.measured = learned.bytes
            self._resided(model)

    def learned(self, model: str) -> ModelProfile:
        """What is worth keeping of what is known of the model."""
        record = self.record(model)
        return ModelProfile(record.measured, record.mean_load or 0.0)

    def give_another_chance(self, model: str) -> None:
        """Count no failed starts: its terms are others now."""
        record = self.records.get(model)
        if record is not None:
            record.failures, record.cool_until, record.reason = 0, 0.0, ""

    def forget(self, model: str) -> None:
        """Drop what was known of a model: it is another one now."""
        self.records.pop(model, None)
        self._resided(model)

    def terms_changed(self) -> None:
        """The limits, or the terms on which workers run, are others now."""
        self._sums = None
        self.version += 1

    def _resided(self, model: str) -> None:
        """Who serves the model or what it takes may have changed."""
        self._sums = None
        self.version += 1
        serving = [r for r in self._of_model.get(model, ()) if r.state in SERVING]
        if serving:
            # An heir waits for its turn, and is no heir any more when there is nobody before it.
            (first,) = [r for r in serving if not r.replacement] or serving
            first.replacement = False
            self._serving[model] = first
        else:
            self._serving.pop(model, None)
        self.touched.add(model)
        self._rank(model)

    def _rank(self, model: str) -> None:
        """Bring the model's place among the wanted up to date."""
        queue = self.queues.get(model)
        before, rank = (
            self._ranks.get(model, NEVER),
            queue.head().rank if queue is not None else NEVER,
        )
        self._ranks[model] = rank
        wish = NEVER if model in self._serving else self._claim(model, rank)
        wished = self._wishes.get(model, NEVER)
        if wish != wished:
            self._wish(model, wished, wish)
        elif (
            before != rank
            and (before < self.horizon or rank < self.horizon)
            and self._ahead(before) != self._ahead(rank)
        ):
            # One that is served has become older, or younger, than one that waits for room.
            self.version += 1

    def _claim(self, model: str, rank: Rank) -> Rank:
        """Its rank among the wanted: behind those for whom it was put out."""
        record = self.records.get(model)
        return rank if record is None else max(rank, (record.put_out, 0))

    def _wish(self, model: str, before: Rank, now: Rank) -> None:
        if min(before, now) <= self.horizon:
            self.version += 1
        if before != NEVER:
            del self.wanted[bisect_left(self.wanted, (before, model))]
            del self._wishes[model]
        if now != NEVER:
            insort(self.wanted, (now, model))
            self._wishes[model] = now

    def _ahead(self, rank: Rank) -> int:
        """How many of the models that wait for room come before this rank, to the horizon."""
        return bisect_left(self.wanted, (min(rank, self.horizon), "")) if self.wanted else 0

    # -- questions -----------------------------------------------------------------------------

    def rank(self, model: str) -> Rank:
        """The first rank of those that wait for this model; NEVER when nobody does."""
        return self._ranks.get(model, NEVER)

    def serving(self, model: str) -> WorkerRecord | None:
        """The one worker that serves this model or soon will, or None."""
        return self._serving.get(model)

    def of_model(self, model: str) -> Collection[WorkerRecord]:
        """All workers alive for this model, oldest first. Not to be kept."""
        return self._of_model.get(model, ())

    def models(self) -> set[str]:
        """All models with a worker or a queue."""
        return self._of_model.keys() | self.queues.keys()

    def _in_use(self, model: str) -> bool:
        resident = self._serving.get(model)
        return model in self.queues or (resident is not None and bool(resident.busy))

    def record(self, model: str) -> ModelRecord:
        record = self.records.get(model)
        if record is None:
            record = self.records[model] = ModelRecord()
        return record

    def load_seconds(self, model: str) -> float:
        """How long a worker of this model takes to be ready; 0 when none ever was."""
        record = self.records.get(model)
        return 0.0 if record is None else record.mean_load or 0.0

    def in_flight(self, model: str) -> bool:
        """Whether any request for this model waits or is served."""
        return model in self.queues or any(r.busy for r in self._of_model.get(model, ()))

    def size(self, spec: ModelSpec) -> int:
        """Bytes that a worker of this model takes: as measured, or as estimated if it never ran."""
        record = self.records.get(spec.name)
        return (record.measured if record is not None else 0) or spec.serving.need_bytes

    def need(self, spec: ModelSpec) -> Capacity:
        """What a worker of this model takes."""
        return Capacity(1, self.size(spec))

    def total(self, residents: Iterable[WorkerRecord]) -> Capacity:
        """What these workers take together."""
        return sum((self.need(r.spec) for r in residents), Capacity())

    def taken(self) -> Capacity:
        """What all workers alive take, those that are on their way out included."""
        return self._all_sums()[0]

    def stays(self) -> Capacity:
        """What the workers take that nobody has asked to go."""
        return self._all_sums()[1]

    def pinned(self) -> Capacity:
        """What those of them take that are pinned."""
        return self._all_sums()[2]

    def _all_sums(self) -> tuple[Capacity, Capacity, Capacity]:
        if self._sums is None:
            taken = stays = pinned = stay_bytes = pinned_bytes = taken_bytes = 0
            for r in self.residents.values():
                size = self.size(r.spec)
                taken += 1
                taken_bytes += size
                if r.state not in LEAVING:
                    stays += 1
                    stay_bytes += size
                    if r.spec.serving.pinned:
                        pinned += 1
                        pinned_bytes += size
            self._sums = (
                Capacity(taken, taken_bytes),
                Capacity(stays, stay_bytes),
                Capacity(pinned, pinned_bytes),
            )
        return self._sums

    def staying(self) -> Iterator[WorkerRecord]:
        """Workers alive that nobody has asked to go."""
        return (r for r in self.residents.values() if r.state not in LEAVING)

    def __repr__(self) -> str:
        residents = ", ".join(
            f"{r.worker}:{r.spec.name} {r.state.value} {len(r.busy)}/{r.slots}"
            for r in self.residents.values()
        )
        queues = ", ".join(f"{model}: {list(q)}" for model, q in self.queues.items())
        return f"[{residents}] waiting {{{queues}}} granted {sorted(self.granted)}"
