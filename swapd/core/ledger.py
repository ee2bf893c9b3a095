"""The books: who waits, who runs, what each is known to take. Kept by the scheduler alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from swapd.core.lifecycle import LEAVING, SERVING, State, Step, advance
from swapd.core.room import Room
from swapd.words.catalog import ModelSpec
from swapd.words.events import RequestId, WorkerId


@dataclass(slots=True)
class Waiting:
    """A request that has no grant yet. `place` orders all requests by arrival."""

    request: RequestId
    place: int
    needs_slot: bool
    since: float


@dataclass(slots=True)
class Resident:
    """A worker whose process is alive or being started."""

    worker: WorkerId
    spec: ModelSpec
    since: float
    deadline: float | None
    """When it is killed: if it has not come up by then, or not gone."""
    state: State = State.STARTING
    told_slots: int = 0
    busy: set[RequestId] = field(default_factory=set)
    served: int = 0
    up_since: float = 0.0
    last_used: float = 0.0
    because: str = ""
    """Why it was asked to go."""
    late: str = ""
    """Says that it was killed because it did not come up in time."""

    def step(self, step: Step) -> None:
        self.state = advance(self.state, step)

    @property
    def idle(self) -> bool:
        return self.state is State.READY and not self.busy

    @property
    def slots(self) -> int:
        """As many as the worker itself has told, else as many as its model's entry says."""
        return self.told_slots or self.spec.slots

    @property
    def ttl(self) -> float:
        """Seconds of idleness after which it goes; 0: it stays."""
        return 0.0 if self.spec.pinned else self.spec.ttl

    @property
    def free_slots(self) -> int:
        return self.slots - len(self.busy) if self.state is State.READY else 0


@dataclass(slots=True)
class Record:
    """What a model's past tells. Means forget: a fifth of each is the newest."""

    measured: int = 0
    """Most bytes that a worker of it was seen to hold."""
    failures: int = 0
    """Failed starts in a row."""
    cool_until: float = 0.0
    reason: str = ""
    mean_request: float | None = None
    """Seconds from grant to end."""
    mean_load: float | None = None
    """Seconds from start to ready."""
    mean_pause: float | None = None
    """Seconds from the end of all its requests to the next one's arrival."""
    quiet_since: float | None = None
    """When the last of its requests ended; None while there are any, or never were."""


def mean(before: float | None, value: float) -> float:
    """A moving mean with one more value in it."""
    return value if before is None else before + 0.2 * (value - before)


class Ledger:
    """Residents, queues and records, with the questions that the scheduler asks of them."""

    def __init__(self) -> None:
        self.residents: dict[WorkerId, Resident] = {}
        self.queues: dict[str, dict[RequestId, Waiting]] = {}
        self.waiting_model: dict[RequestId, str] = {}
        self.granted: dict[RequestId, tuple[WorkerId, float]] = {}
        self.records: dict[str, Record] = {}
        self._places = 0
        self._workers = 0

    def enqueue(self, model: str, request: RequestId, needs_slot: bool, now: float) -> None:
        self._places += 1
        waiting = Waiting(request, self._places, needs_slot, now)
        self.queues.setdefault(model, {})[request] = waiting
        self.waiting_model[request] = model

    def dequeue(self, request: RequestId) -> None:
        """Take a waiting request out; a queue that falls empty is dropped."""
        model = self.waiting_model.pop(request)
        queue = self.queues[model]
        del queue[request]
        if not queue:
            del self.queues[model]

    def oldest_place(self, model: str) -> int | None:
        """The place of the request that has waited longest for this model, or None."""
        queue = self.queues.get(model)
        return next(iter(queue.values())).place if queue else None

    def admit(self, spec: ModelSpec, now: float) -> Resident:
        """A new resident, starting."""
        self._workers += 1
        resident = Resident(self._workers, spec, now, now + spec.start_timeout)
        self.residents[resident.worker] = resident
        return resident

    def serving(self, model: str) -> Resident | None:
        """The one worker that serves this model or soon will, or None."""
        for resident in self.residents.values():
            if resident.spec.name == model and resident.state in SERVING:
                return resident
        return None

    def record(self, model: str) -> Record:
        return self.records.setdefault(model, Record())

    def load_seconds(self, model: str) -> float:
        """How long a worker of this model takes to be ready; 0 when none ever was."""
        record = self.records.get(model)
        return (record.mean_load if record else None) or 0.0

    def in_flight(self, model: str) -> bool:
        """Whether any request for this model waits or is served."""
        serving = (r.busy for r in self.residents.values() if r.spec.name == model)
        return model in self.queues or any(serving)

    def need(self, spec: ModelSpec) -> Room:
        """What a worker of this model takes: as measured, or as estimated if it never ran."""
        record = self.records.get(spec.name)
        return Room(1, (record.measured if record else 0) or spec.need_bytes)

    def total_need(self, specs: Iterable[ModelSpec]) -> Room:
        """What workers of all these models take together."""
        return sum(map(self.need, specs), Room())

    def total(self, residents: Iterable[Resident]) -> Room:
        """What these workers take together."""
        return self.total_need(r.spec for r in residents)

    def taken(self) -> Room:
        """What all workers alive take, those that are on their way out included."""
        return self.total(self.residents.values())

    def staying(self) -> Iterator[Resident]:
        """Workers alive that nobody has asked to go."""
        return (r for r in self.residents.values() if r.state not in LEAVING)

    def __repr__(self) -> str:
        residents = ", ".join(
            f"{r.worker}:{r.spec.name} {r.state.value} {len(r.busy)}/{r.slots}"
            for r in self.residents.values()
        )
        queues = ", ".join(f"{model}: {list(q)}" for model, q in self.queues.items())
        return f"[{residents}] waiting {{{queues}}} granted {sorted(self.granted)}"
