"""The supervisor: the inbox, and the only writer.

Whatever happens becomes an event in the inbox. Events are handled one after the other; the
orders that the core gives for one are carried out before the next is looked at, and nothing is
awaited in between, so the core's books and the world never disagree by more than what is still
in the inbox.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

import aiohttp

from swapd.config.diff import diff
from swapd.domain import commands as od
from swapd.domain import events as ev
from swapd.domain.models import Catalog
from swapd.domain.status import QueueEstimate
from swapd.leases import (
    DEFAULT_OPTIONS,
    Lease,
    RejectedError,
    RequestOptions,
    WorkerHandle,
    WorkerSnapshot,
)
from swapd.process import memory
from swapd.process.liveness import Liveness
from swapd.process.prefetch import prefetch
from swapd.process.profiles import ProfileStore
from swapd.process.readiness import PortOwnerError, wait_until_ready
from swapd.process.spawn import SpawnContext, WarmStandby
from swapd.process.worker_process import WorkerProcess
from swapd.scheduler.scheduler import Scheduler
from swapd.system.aio import Tasks, Timer, now, wall
from swapd.system.logs import Logs
from workers.protocol import Message, ReadyMessage


class Supervisor:
    """Runs the core against the world. Made and used on one event loop."""

    def __init__(
        self,
        catalog: Catalog,
        place: SpawnContext,
        logs: Logs,
        session: aiohttp.ClientSession,
        observe: Callable[[ev.Event, list[od.Command]], None],
        learnings: ProfileStore,
        spare: WarmStandby | None = None,
    ) -> None:
        self._core = Scheduler(catalog, learnings.recall(catalog))
        self._learnings = learnings
        self._place = place
        self._logs = logs
        self._log = logs.own
        self._session = session
        self._observe = observe
        self._spare = spare
        self._inbox: deque[ev.Event] = deque()
        self._busy = False
        self._requests = 0
        self._waiting: dict[ev.RequestId, asyncio.Future[Lease]] = {}
        self._workers: dict[ev.WorkerId, WorkerHandle] = {}
        self._alarm = Timer(lambda: self.post(ev.TimerFired(now())))
        self._tasks = Tasks(logs.own)
        self.closed = asyncio.Event()
        """Set when a shutdown has left nothing running."""
        self._closing = False
        self._end_by = math.inf

    # -- what doors ask --------------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        return self._core.catalog

    @property
    def closing(self) -> bool:
        return self._closing

    @staticmethod
    def now() -> float:
        """The clock of all times that this class tells."""
        return now()

    def waiting(self, model: str) -> int:
        """How many requests wait for a model."""
        return self._core.waiting(model)

    def queue_estimate(self, model: str) -> QueueEstimate:
        """What somebody may expect who waits for a model."""
        return self._core.queue_estimate(model, now())

    def snapshots(self) -> list[WorkerSnapshot]:
        """Every worker alive, oldest first."""
        seen = []
        for status in self._core.status():
            running = self._workers[status.worker]
            process = running.process
            if process is None:
                continue
            beat = running.liveness.beat
            silent = None if beat is None else now() - beat
            url, argv = process.base_url, process.argv
            told = running.devices
            seen.append(
                WorkerSnapshot(status, process.pid, argv, url, running.started, silent, told)
            )
        return seen

    @property
    def tracks_fingerprints(self) -> bool:
        """Whether to tell the fingerprints of requests: workers have ended under some lately."""
        return self._core.tracks_fingerprints

    async def admit(
        self,
        model: str,
        needs_slot: bool = True,
        wish: RequestOptions = DEFAULT_OPTIONS,
        fingerprint: str = "",
    ) -> Lease:
        """Wait for a slot of this model's worker, which is started if need be.

        Raises RefusedError. When the caller is cancelled, whatever it held is given back.
        """
        self._requests += 1
        return await self._granted(
            ev.RequestArrived(
                *(now(), self._requests, model, needs_slot),
                keep_alive=wish.keep_alive,
                tenant=wish.tenant,
                priority=wish.priority,
                fingerprint=fingerprint,
            )
        )

    async def reacquire(self, lease: Lease, fingerprint: str) -> Lease:
        """Wait for another worker in the place of one that has ended: as `admit` does.

        The lease is given back by this, however it ends.
        """
        lease.handle.liveness.leases -= 1
        return await self._granted(ev.RequestRetried(now(), lease.request, fingerprint))

    async def _granted(self, event: ev.RequestArrived | ev.RequestRetried) -> Lease:
        request = event.request
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting[request] = future
        self.post(event)
        try:
            return await future
        except asyncio.CancelledError:
            if self._waiting.pop(request, None) is not None:
                self.post(ev.RequestCancelled(now(), request))
            elif not future.cancelled() and future.exception() is None:
                self.release(future.result(), answered=False)
            raise

    def release(self, lease: Lease, answered: bool, tokens: int = 0, fingerprint: str = "") -> None:
        """Give a slot back: the request is over, and the worker answered it or did not.

        `tokens` were read and written for it; 0: not known. The fingerprint is told when the
        worker ended under it.
        """
        lease.handle.liveness.leases -= 1
        self.post(ev.RequestFinished(now(), lease.request, answered, tokens, fingerprint))
        self.keep_spare()

    def keep_spare(self) -> None:
        """See to it that a spare worker waits, if there is to be one.

        After a request and not when a spare is taken: then the worker it has become needs the
        processor more than the next spare does.
        """
        if self._spare is None or self._closing:
            return
        try:
            self._spare.prepare()
        except OSError as error:
            self._log.warning("there is no spare worker: %s", error.strerror)

    async def load(self, model: str) -> None:
        """Wait until this model's worker is ready. Raises RefusedError when it does not get so."""
        self.release(await self.admit(model, needs_slot=False), answered=True)

    def preload(self) -> None:
        """Begin to load the models whose entries ask for it; what fails is logged."""
        for spec in self.catalog.models.values():
            if spec.serving.preload:
                self._tasks.run(self._preload(spec.name), f"preload of {spec.name}")

    async def _preload(self, model: str) -> None:
        try:
            await self.load(model)
        except RejectedError as error:
            self._log.warning("%s: not preloaded: %s", model, error)

    async def unload(self, model: str | None) -> list[str]:
        """Let the ready workers of a model, or of all, go; wait for those that were idle.

        Returns the models concerned. Busy workers finish first and are not waited for.
        """
        asked = [
            s
            for s in self._core.status()
            if s.state == "ready" and (model is None or s.model == model)
        ]
        ends = [self._workers[s.worker].gone for s in asked if not s.busy]
        self.post(ev.UnloadRequested(now(), model))
        for end in ends:
            await end.wait()
        return [s.model for s in asked]

    def reload(self, catalog: Catalog) -> None:
        """Take a new configuration; what it did not change keeps running."""
        changes = diff(self.catalog, catalog)
        self._log.info("configuration reloaded: %s", changes)
        self.post(ev.CatalogReloaded(now(), catalog, self._learnings.recall(catalog)))

    def close(self, grace: float) -> None:
        """Begin to end: running requests may go on for `grace` seconds; then `closed` is set."""
        self._closing = True
        if self._spare is not None:
            self._spare.dismiss()
        self._end_by = min(self._end_by, now() + grace)
        self.post(ev.ShutdownRequested(now(), self._end_by))

    async def end(self) -> None:
        """After `closed`: end what runs in the background."""
        self._alarm.set(None)
        await self._tasks.end()
        self._learnings.close()

    # -- the inbox ---------------------------------------------------------------------------------

    def post(self, event: ev.Event) -> None:
        """Put an event in; it and all that follow from it are handled before this returns.

        Unless it is posted while another event is being handled: then right after that one.
        """
        self._inbox.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._inbox:
                self._handle(self._inbox.popleft())
        finally:
            self._busy = False
        if self._closing and (self._core.at_rest or self._is_overdue()):
            self.closed.set()

    def _is_overdue(self) -> bool:
        """Whether the time to end has come and only clients are left that do not read."""
        return now() >= self._end_by and not self._workers and not self._waiting

    def _handle(self, event: ev.Event) -> None:
        orders = self._core.handle(event)
        self._observe(event, orders)
        for order in orders:
            self._carry_out(order)

    def _carry_out(self, order: od.Command) -> None:
        match order:
            case od.AssignWorker(request, worker):
                self._grant(request, worker)
            case od.Reject():
                self._refuse(order)
            case od.Start():
                self._start(order)
            case od.Stop(worker, because):
                self._stop(worker, because)
            case od.Kill():
                self._kill(order)
            case od.CheckLiveness(worker):
                self._look(worker)
            case od.PrefetchFiles() | od.Preload():
                self._prepare(order)
            case od.SampleMemory():
                self._tasks.run(self._sample(), "memory sample")
            case od.QueryFreeMemory():
                self.post(ev.FreeMemoryReported(now(), memory.free()))
            case od.SaveProfile(worker, learned) if worker in self._workers:
                self._learnings.note(self._workers[worker].identity, learned)
            case od.SetTimer(when):
                self._alarm.set(when)

    # -- orders ------------------------------------------------------------------------------------

    def _grant(self, request: ev.RequestId, worker: ev.WorkerId) -> None:
        future = self._waiting.pop(request)
        process = self._workers[worker].process
        assert process is not None, "only a ready worker gets grants"
        running = self._workers[worker]
        running.liveness.leases += 1
        lease = Lease(request, worker, process.base_url, running)
        if future.cancelled():
            self.release(lease, answered=False)
        else:
            future.set_result(lease)

    def _prepare(self, order: od.PrefetchFiles | od.Preload) -> None:
        if isinstance(order, od.PrefetchFiles):
            name, home = order.spec.name, self._place.home
            self._tasks.run(prefetch(order.spec, home), f"reading of {name}")
        else:
            self._tasks.run(self._preload(order.model), f"load of {order.model}")

    def _refuse(self, order: od.Reject) -> None:
        future = self._waiting.pop(order.request)
        if not future.cancelled():
            future.set_exception(RejectedError(order))

    def _start(self, order: od.Start) -> None:
        spec, worker = order.spec, order.worker
        output = self._logs.of(spec.name)
        identity = self._learnings.identity(spec)
        running = self._workers[worker] = WorkerHandle(None, wall(), identity)
        try:
            running.process = WorkerProcess(worker, spec, self._place, self, output, self._spare)
        except OSError as error:
            reason = f"{spec.launch.argv[0]} can't be run: {error.strerror}"
            self._log.warning("%s: %s", spec.name, reason)
            self.worker_exited(worker, reason, killed_externally=False)
            return
        self._log.info("%s: started as pid %d", spec.name, running.process.pid)
        if not spec.launch.builtin:
            running.probe = self._tasks.run(self._probe(running.process), f"probe of {spec.name}")

    def _stop(self, worker: ev.WorkerId, because: str) -> None:
        process = self._process(worker)
        if process is not None:
            self._log.info("%s: stopping pid %d: %s", process.spec.name, process.pid, because)
            process.stop()

    def _kill(self, order: od.Kill) -> None:
        process, because = self._process(order.worker), order.reason
        if process is not None:
            self._log.warning("%s: killing pid %d: %s", process.spec.name, process.pid, because)
            process.condemn(because) if order.hung else process.kill()

    def _look(self, worker: ev.WorkerId) -> None:
        process = self._process(worker)
        if process is not None:
            pulse, name = self._workers[worker].liveness, process.spec.name
            self._tasks.run(self._looked(process, pulse), f"look at {name}")
            if process.spec.serving.liveness_probe:
                self._tasks.run(pulse.ask(process, self._session), f"question to {name}")

    async def _looked(self, process: WorkerProcess, pulse: Liveness) -> None:
        """Look for signs only where there were none lately."""
        if now() - pulse.last() > process.spec.serving.hang_timeout / 4:
            await pulse.look(process)
        self.post(ev.LivenessReported(now(), process.worker, pulse.last()))

    def _process(self, worker: ev.WorkerId) -> WorkerProcess | None:
        """The worker's process; None when it has ended and the core is yet to hear of it."""
        running = self._workers.get(worker)
        return running.process if running else None

    async def _sample(self) -> None:
        pids = {r.process.pid: w for w, r in self._workers.items() if r.process is not None}
        loop = asyncio.get_running_loop()
        seen = await loop.run_in_executor(None, memory.sample, list(pids))
        held = {pids[pid]: held for pid, held in seen.held.items()}
        self.post(ev.MemorySampled(now(), seen.used_percent, held, seen.pressure_percent))

    # -- what workers tell -------------------------------------------------------------------------

    async def _probe(self, process: WorkerProcess) -> None:
        try:
            await wait_until_ready(process, self._session)
        except PortOwnerError as error:
            self._log.warning("%s: %s", process.spec.name, error)
            process.condemn(str(error))
            return
        self._came_up(process.worker)

    def worker_spoke(self, worker: ev.WorkerId, message: Message) -> None:
        """Apply a message of a built-in worker."""
        running = self._workers[worker]
        running.liveness.beat = now()
        if isinstance(message, ReadyMessage):
            running.resumable, running.devices = message.resumable, message.devices
            self._came_up(worker, message.slots)

    def _came_up(self, worker: ev.WorkerId, slots: int = 0) -> None:
        running = self._workers[worker]
        assert running.process is not None
        running.process.came_up()
        took = now() - running.since
        name, url = running.process.spec.name, running.process.base_url
        self._log.info("%s: ready after %.2f s at %s", name, took, url)
        self.post(ev.WorkerReady(now(), worker, slots))

    def worker_exited(self, worker: ev.WorkerId, reason: str, killed_externally: bool) -> None:
        """A worker's process is gone, and everything it said has been heard."""
        running = self._workers.pop(worker)
        if running.probe is not None:
            running.probe.cancel()
        if running.process is not None:
            self._log.info("%s: pid %d: %s", running.process.spec.name, running.process.pid, reason)
        running.exit_reason = reason
        running.gone.set()
        self.post(ev.WorkerExited(now(), worker, reason, killed_externally))
