"""A simulated machine: carries the scheduler's orders out in virtual time and keeps its own books.

It knows nothing of how the scheduler decides. It starts and ends pretend processes, delivers
the facts in an order that a script chooses, and after each one checks what must hold for every
history. A breach raises BreachError, with the history so far.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from swapd.domain import commands as od
from swapd.domain import events as ev
from swapd.domain.models import Catalog, Limits, ModelSpec
from swapd.scheduler.emitter import PRESSURE
from swapd.scheduler.scheduler import FREE_MEMORY_TIMEOUT, Scheduler
from tests.scheduler import (
    external_kills,
    free_memory,
    group_rules,
    machine_time,
    replacements,
    ttl_rules,
)
from tests.scheduler.machine_worker import LOAD_MOST, SERVE_MOST, STOP_MOST, Process


class BreachError(AssertionError):
    """A property of the core does not hold in this history."""


@dataclass
class Machine:
    """The world around one scheduler."""

    scheduler: Scheduler
    now: float = 0.0
    processes: dict[int, Process] = field(default_factory=dict)
    open: dict[int, str] = field(default_factory=dict)
    """Requests that have not ended, by the model they asked for."""
    guests: set[int] = field(default_factory=set)
    lines: dict[int, tuple[str, str, int]] = field(default_factory=dict)
    """For each open request the line it stands in: model, tenant and priority."""
    kept: dict[int, float] = field(default_factory=dict)
    """`keep_alive` of requests, in seconds."""
    granted: dict[int, tuple[int, float]] = field(default_factory=dict)
    patience: dict[int, float] = field(default_factory=dict)
    """Until when each may wait: at most a turn, its time, a stop and a start for each before it."""
    ended: dict[int, str] = field(default_factory=dict)
    losses: dict[int, int] = field(default_factory=dict)
    """Workers that each request has lost."""
    kills: dict[int, int] = field(default_factory=dict)
    """Number of these workers that were killed externally."""
    falls: dict[int, int] = field(default_factory=dict)
    """Those of whose end it may be the cause."""
    fell: dict[str, float] = field(default_factory=dict)
    """Time at which a worker last ended under each fingerprint."""
    poison: dict[str, float] = field(default_factory=dict)
    """Until when each may be refused as poison."""
    looks: set[int] = field(default_factory=set)
    """Workers at which the machine is to look."""
    terms_since: float = 0.0
    wake: float | None = None
    sample_wanted: bool = False
    closing: float | None = None
    pressed_stops: int = 0
    capacity: int = 14
    """Bytes of memory that there are in fact, budget or not."""
    foreign: int = 0
    """Bytes of them that other programs hold."""
    percent: float = 0.0
    """Percent of memory in use at the last sample."""
    look_wanted: bool = False
    brought: list[str] = field(default_factory=list)
    """Models that are to be asked for because others are started."""
    requests: int = 0
    started: int = 0
    history: list[str] = field(default_factory=list)

    @property
    def limits(self) -> Limits:
        return self.scheduler.catalog.limits

    @property
    def turn(self) -> float:
        """Longest delay of a request by each model before it, without loading."""
        patience = FREE_MEMORY_TIMEOUT if self.limits.require_free_memory else 0.0
        stay = max(
            (m.serving.min_residency for m in self.scheduler.catalog.models.values()), default=0.0
        )
        return 30.0 + SERVE_MOST + STOP_MOST + self.limits.max_turn + patience + stay

    def breach(self, what: str) -> BreachError:
        return BreachError("\n".join([*self.history, f"!! {what}", repr(self.scheduler)]))

    def require(self, holds: bool, what: str) -> None:
        if not holds:
            raise self.breach(what)

    # -- one fact in, its orders carried out -----------------------------------------------------

    def tell(self, event: ev.Event) -> list[od.Command]:
        self.history.append(f">> {event}")
        before = self.pressed_stops
        orders = self.scheduler.handle(event)
        for order in orders:
            self.history.append(f"<< {order}")
            self._carry_out(order)
        pressed_now = self.pressed_stops - before
        self.require(pressed_now <= 1, "two victims for one look at the memory")
        self.require(
            not pressed_now or isinstance(event, ev.MemorySampled),
            "pressure acted on without a sample",
        )
        self._check()
        group_rules.check(self)
        external_kills.check_hung(self)
        while self.brought:
            self.arrive(self.brought.pop(), needs_slot=False)
        if self.look_wanted:
            self.look_wanted = False
            self.tell(ev.FreeMemoryReported(self.now, free_memory.free(self)))
        return orders

    def _carry_out(self, order: od.Command) -> None:
        match order:
            case od.Start(worker, spec):
                self._start(worker, spec)
            case od.Stop(worker, because):
                self._stop(self.processes[worker], because)
            case od.Kill(worker, _, hung):
                self._kill(self.processes[worker], hung)
            case od.AssignWorker(request, worker):
                self._grant(request, worker)
            case od.Reject(request, why):
                external_kills.check_refusal(self, request, why)
                self.require(request in self.open, f"request {request} refused after its end")
                self.require(request not in self.granted, f"request {request} refused after grant")
                self.end(request, "refused")
            case od.SampleMemory():
                self.sample_wanted = True
            case od.CheckLiveness(worker):
                self.looks.add(worker)
            case od.PrefetchFiles(spec):
                waits = [r for r in self.open if self.open[r] == spec.name]
                self.require(bool(waits), f"{spec.name} is read though nobody waits for it")
            case od.Preload(model):
                self.brought.append(model)
            case od.QueryFreeMemory():
                self.require(self.limits.require_free_memory, "a look that nobody asked for")
                self.look_wanted = True
            case od.SetTimer(when):
                self.require(when is None or when > self.now, f"a wish to wake in the past: {when}")
                self.wake = when

    def _start(self, worker: int, spec: ModelSpec) -> None:
        self.require(worker not in self.processes, f"worker {worker} started twice")
        self.require(
            self.scheduler.catalog.models.get(spec.name) == spec, "an unknown spec started"
        )
        for other in self.processes.values():
            same = other.spec.name == spec.name and other.told is None and not other.killed
            self.require(
                not same or replacements.has_heir(other, spec) or self.drains(other),
                f"a second worker for {spec.name} is started",
            )
        self.started += 1
        self.processes[worker] = Process(worker, spec, self.now, self.limits.groups, self.started)
        count, taken = len(self.processes), sum(self.need(p) for p in self.processes.values())
        if self.limits.max_resident:
            self.require(count <= self.limits.max_resident, f"{count} workers are alive")
        if self.limits.budget_bytes:
            self.require(taken <= self.limits.budget_bytes, f"{taken} bytes are taken")
        free_memory.check_start(self)

    def need(self, process: Process) -> int:
        status = {s.worker: s.bytes for s in self.scheduler.status()}
        return status.get(process.worker, process.spec.serving.need_bytes)

    def spec(self, process: Process) -> ModelSpec:
        """The terms on which a process runs now: a reload may have changed them."""
        new = self.scheduler.catalog.models.get(process.spec.name)
        return new if new is not None and process.spec.same_process(new) else process.spec

    def drains(self, process: Process) -> bool:
        states = {s.worker: s.state for s in self.scheduler.status()}
        return states[process.worker] == "draining"

    def _stop(self, process: Process, because: str) -> None:
        self.require(process.told is None and not process.killed, "a worker stopped twice")
        slotted = process.serving - self.guests
        self.require(
            not slotted or free_memory.may_end_busy_ones(self, because),
            f"busy worker {process.worker} stopped: {because}",
        )
        forced = ("its configuration changed", "unloaded by hand", "swapd is shutting down")
        unclaimed = because == "no request waits for it any more"
        self.require(
            not self.spec(process).serving.pinned or because in forced or unclaimed,
            f"pinned {process.spec.name} stopped: {because}",
        )
        ttl_rules.check(self, process, because)
        room = because.startswith("makes room")
        spec = self.spec(process)
        early = room and self.now < process.up_at + spec.serving.min_residency
        self.require(not early, f"{spec.name} goes before its least time is over")
        kept = room and self.limits.policy in ("ttl", "no-evict")
        self.require(not kept, f"{process.spec.name} makes room though the policy lets nobody go")
        process.told = self.now
        process.reason = because
        self.pressed_stops += because == PRESSURE
        others = [p for p in self.processes.values() if p.reason == PRESSURE and p is not process]
        self.require(because != PRESSURE or not others, "a second victim before the first is gone")

    def _kill(self, process: Process, hung: bool) -> None:
        if hung:
            external_kills.check_kill(self, process)
            process.killed = process.killed_as_hung = True
            return
        closing = self.closing is not None and self.now >= self.closing
        late = (
            process.told is not None and self.now >= process.told + process.spec.serving.stop_grace
        )
        slow = not process.ready and self.now >= process.born + process.spec.serving.start_timeout
        self.require(closing or late or slow, f"worker {process.worker} killed before its time")
        process.killed = True

    def _grant(self, request: int, worker: int) -> None:
        self.require(request in self.open, f"request {request} granted after its end")
        self.require(request not in self.granted, f"request {request} granted twice")
        process = self.processes[worker]
        self.require(process.ready, f"a grant to worker {worker}, which is not ready")
        self.require(
            process.told is None and not process.killed, f"a grant to worker {worker}, told to go"
        )
        self.require(not self.drains(process), f"a grant to worker {worker}, which drains")
        self.require(process.spec.name == self.open[request], "a grant to another model's worker")
        before = [r for r in self.open if r < request and r not in self.granted]
        self.require(
            request in self.guests or not any(self.lines[r] == self.lines[request] for r in before),
            f"request {request} passes an older one of its own line",
        )
        if request in self.kept:
            process.keep_alive = self.kept[request]
        external_kills.check_grant(self, request, process)
        slots = self.spec(process).serving.slots
        if request not in self.guests and not process.serving - self.guests:
            process.busy_since = self.now
        process.serving.add(request)
        self.granted[request] = (worker, self.now)
        slotted = process.serving - self.guests
        took_one = request not in self.guests
        self.require(not took_one or len(slotted) <= slots, "more grants than slots")

    def end(self, request: int, how: str) -> None:
        self.require(request not in self.ended, f"request {request} ended twice")
        del self.open[request]
        del self.lines[request]
        self.kept.pop(request, None)
        self.guests.discard(request)
        worker, _ = self.granted.pop(request, (0, 0.0))
        if worker in self.processes:
            self.processes[worker].serving.discard(request)
        self.ended[request] = how

    def _check(self) -> None:
        """Check that no slot stays free beside a queue, and that no unwanted model is loaded."""
        wanted = {model for r, model in self.open.items() if r not in self.granted}
        for p in self.processes.values():
            unclaimed = not p.ready and p.told is None and not p.killed
            heir = replacements.is_heir(self, p)
            self.require(not (heir and p.ready), f"two workers serve {p.spec.name}")
            claimed = p.spec.name in wanted or heir
            self.require(not unclaimed or claimed, f"{p.spec.name} loads for nobody")
        for request, model in self.open.items():
            if request in self.granted:
                continue
            self.require(self.now <= self.patience[request], f"request {request} waits too long")
            live = [p for p in self.processes.values() if p.spec.name == model]
            # Who has lost two workers waits until it can have one for itself.
            alone = len(wanted) == 1 and not external_kills.may_want_to_be_alone(
                self, request, model
            )
            for p in live:
                usable = p.ready and p.told is None and not p.killed and not self.drains(p)
                free = len(p.serving - self.guests) < self.spec(p).serving.slots
                self.require(
                    not (alone and usable and free), f"request {request} waits beside a free slot"
                )

    # -- what a script may do --------------------------------------------------------------------

    def arrive(
        self,
        model: str,
        needs_slot: bool = True,
        keep_alive: float | None = None,
        tenant: str = "",
        priority: int = 0,
    ) -> int:
        self.requests += 1
        request = self.requests
        turn = self.turn
        spec = self.scheduler.catalog.models.get(model)
        rank = priority + (spec.serving.priority if spec else 0)
        self.lines[request] = (model, tenant, rank)
        for other in self.open:
            # One that comes later may be served first only if it is another tenant's or above.
            if self.lines[other][1] != tenant or self.lines[other][2] < rank:
                self.patience[other] += turn
        self.open[request] = model
        if keep_alive is not None:
            self.kept[request] = keep_alive
        self.patience[request] = self.now + (len(self.open) + 1) * turn + 30.0
        if not needs_slot:
            self.guests.add(request)
        known = external_kills.fingerprint(request) if self.scheduler.tracks_fingerprints else ""
        self.tell(
            ev.RequestArrived(
                self.now, request, model, needs_slot, keep_alive, tenant, priority, known
            )
        )
        return request

    def leave(self, request: int) -> None:
        """The client goes: a waiting request has Left, a granted one is Finished at once."""
        if request in self.granted:
            self.finish(request, answered=False)
        else:
            self.end(request, "left")
            self.tell(ev.RequestCancelled(self.now, request))

    def finish(self, request: int, answered: bool = True, tokens: int = 0) -> None:
        self.end(request, "finished")
        self.tell(ev.RequestFinished(self.now, request, answered, tokens))

    def come_up(self, worker: int) -> None:
        self.processes[worker].ready, self.processes[worker].up_at = True, self.now
        self.tell(ev.WorkerReady(self.now, worker))

    def exit(
        self,
        worker: int,
        reason: str = "exit",
        again: bool = False,
        killed_externally: bool = False,
    ) -> None:
        """The process is gone; half of what it served fails before its exit is noticed, or all
        of it comes again afterwards."""
        process = self.processes[worker]
        process.dead = True
        for request in [] if again else sorted(process.serving)[::2]:
            self.finish(request, answered=False)
        self.processes.pop(worker)
        external_kills.note_end(self, process, killed_externally)
        self.tell(ev.WorkerExited(self.now, worker, reason, killed_externally))
        for request in sorted(process.serving):
            external_kills.lose(self, request, again)

    def sample(
        self, percent: float, held: dict[int, int] | None = None, pressure_percent: float = 0.0
    ) -> None:
        self.sample_wanted, self.percent = False, percent
        self.tell(ev.MemorySampled(self.now, percent, held or {}, pressure_percent))

    def reload(self, catalog: Catalog) -> None:
        self.terms_since = self.now
        for process in self.processes.values():
            new = catalog.models.get(process.spec.name)
            if new is not None and process.spec.same_process(new):
                process.spec = new
        self.tell(ev.CatalogReloaded(self.now, catalog))

    def unload(self, model: str | None) -> None:
        self.tell(ev.UnloadRequested(self.now, model))

    def close(self, grace: float) -> None:
        deadline = self.now + grace
        self.closing = deadline if self.closing is None else min(self.closing, deadline)
        self.tell(ev.ShutdownRequested(self.now, deadline))

    # -- time ------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass; whatever falls due on the way happens, in order."""
        machine_time.advance(self, seconds)

    def settle_down(self) -> None:
        """Run to the end; no request may be left waiting, and no resource held."""
        turn = LOAD_MOST + SERVE_MOST + 3 * STOP_MOST + self.limits.max_turn + FREE_MEMORY_TIMEOUT
        bound = len(self.open) * turn + 100.0
        self.advance(bound)
        self.require(not self.open, f"requests never ended: {sorted(self.open)}")
        books = repr(self.scheduler)
        self.require("assigned []" in books and "queued {}" in books, f"held at rest: {books}")
        if self.closing is not None:
            self.require(not self.processes, "workers outlive a shutdown")
        for p in self.processes.values():
            self.require(
                not ttl_rules.is_timed(self, p), f"{p.spec.name} outlives its time to live"
            )
