"""The supervisor: an event loop around the scheduler, and the only writer of its state.

Everything that happens becomes an event in one inbox. Events are handled one after the other; the
commands that the scheduler returns for an event are executed before the next event is handled,
without an `await` in between. So the scheduler's state differs from reality by the events in the
inbox and by nothing else.
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
    """Executes the scheduler's commands on processes. Created and used on one event loop."""

    def __init__(
        self,
        catalog: Catalog,
        spawn_context: SpawnContext,
        logs: Logs,
        session: aiohttp.ClientSession,
        observe: Callable[[ev.Event, list[od.Command]], None],
        profiles: ProfileStore,
        standby: WarmStandby | None = None,
    ) -> None:
        self._scheduler = Scheduler(catalog, profiles.load(catalog))
        self._profiles = profiles
        self._spawn_context = spawn_context
        self._logs = logs
        self._log = logs.own
        self._session = session
        self._observe = observe
        self._standby = standby
        self._inbox: deque[ev.Event] = deque()
        self._handling = False
        """True while an event is handled."""
        self._last_request = 0
        self._waiting: dict[ev.RequestId, asyncio.Future[Lease]] = {}
        self._workers: dict[ev.WorkerId, WorkerHandle] = {}
        self._timer = Timer(lambda: self.post(ev.TimerFired(now())))
        self._tasks = Tasks(logs.own)
        self.closed = asyncio.Event()
        """Set when a shutdown is complete and no worker runs."""
        self._closing = False
        self._deadline = math.inf
        """Time at which a shutdown no longer waits for requests."""

    # -- interface for the servers -----------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        return self._scheduler.catalog

    @property
    def closing(self) -> bool:
        return self._closing

    @staticmethod
    def now() -> float:
        """Return the present time on the clock of all times in snapshots."""
        return now()

    def waiting(self, model: str) -> int:
        """Return the number of requests that are queued for a model."""
        return self._scheduler.waiting(model)

    def queue_estimate(self, model: str) -> QueueEstimate:
        """Return the expected wait of a request that is queued for a model."""
        return self._scheduler.queue_estimate(model, now())

    def snapshots(self) -> list[WorkerSnapshot]:
        """Return a snapshot of every running worker, oldest first."""
        snapshots = []
        for status in self._scheduler.status():
            handle = self._workers[status.worker]
            process = handle.process
            if process is None:
                continue
            beat = handle.liveness.last_heartbeat
            snapshots.append(
                WorkerSnapshot(
                    status,
                    process.pid,
                    process.argv,
                    process.base_url,
                    handle.started,
                    None if beat is None else now() - beat,
                    handle.devices,
                )
            )
        return snapshots

    @property
    def tracks_fingerprints(self) -> bool:
        """True while requests must carry fingerprints because a worker crashed recently."""
        return self._scheduler.tracks_fingerprints

    async def admit(
        self,
        model: str,
        needs_slot: bool = True,
        options: RequestOptions = DEFAULT_OPTIONS,
        fingerprint: str = "",
    ) -> Lease:
        """Wait for a slot of the model's worker, which is started if necessary.

        Raises RejectedError. If the caller is cancelled, the slot is released.
        """
        self._last_request += 1
        return await self._lease(
            ev.RequestArrived(
                *(now(), self._last_request, model, needs_slot),
                keep_alive=options.keep_alive,
                tenant=options.tenant,
                priority=options.priority,
                fingerprint=fingerprint,
            )
        )

    async def reacquire(self, lease: Lease, fingerprint: str) -> Lease:
        """Exchange the lease of a worker that exited for one of another worker, like `admit`.

        The old lease ends in any case.
        """
        lease.end()
        return await self._lease(ev.RequestRetried(now(), lease.request, fingerprint))

    async def _lease(self, event: ev.RequestArrived | ev.RequestRetried) -> Lease:
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
        """End a lease: the request is over, and the worker answered it or did not.

        `tokens` is the number of prompt and generated tokens; 0: unknown. `fingerprint` is given if
        the worker exited while serving the request.
        """
        lease.end()
        self.post(ev.RequestFinished(now(), lease.request, answered, tokens, fingerprint))
        self.prepare_standby()

    def prepare_standby(self) -> None:
        """Start a warm standby process unless one is ready, if configured.

        Called after a request and not when a standby is used: at that moment the worker that it
        becomes needs the processor more than the next standby does.
        """
        if self._standby is None or self._closing:
            return
        try:
            self._standby.prepare()
        except OSError as error:
            self._log.warning("the warm standby can't be started: %s", error.strerror)

    async def load(self, model: str) -> None:
        """Wait until the model's worker is ready. Raises RejectedError if it can't be loaded."""
        self.release(await self.admit(model, needs_slot=False), answered=True)

    def preload(self) -> None:
        """Start loading the models that are configured for it; failures are logged."""
        for spec in self.catalog.models.values():
            if spec.serving.preload:
                self._tasks.run(self._preload(spec.name), f"preload of {spec.name}")

    async def _preload(self, model: str) -> None:
        try:
            await self.load(model)
        except RejectedError as error:
            self._log.warning("%s: not preloaded: %s", model, error)

    async def unload(self, model: str | None) -> list[str]:
        """Stop the ready workers of a model, or of all models, and wait for the idle ones.

        Busy workers finish their requests first; their exit is not waited for. Returns the names
        of the models concerned.
        """
        stopped = [
            s
            for s in self._scheduler.status()
            if s.state == "ready" and (model is None or s.model == model)
        ]
        exits = [self._workers[s.worker].gone for s in stopped if not s.busy]
        self.post(ev.UnloadRequested(now(), model))
        for gone in exits:
            await gone.wait()
        return [s.model for s in stopped]

    def reload(self, catalog: Catalog) -> None:
        """Replace the catalog; workers of unchanged models keep running."""
        changes = diff(self.catalog, catalog)
        self._log.info("configuration reloaded: %s", changes)
        self.post(ev.CatalogReloaded(now(), catalog, self._profiles.load(catalog)))

    def close(self, grace: float) -> None:
        """Start a shutdown: running requests may go on for `grace` seconds; then `closed` is set.

        A later call can shorten the time, but not extend it.
        """
        self._closing = True
        if self._standby is not None:
            self._standby.close()
        self._deadline = min(self._deadline, now() + grace)
        self.post(ev.ShutdownRequested(now(), self._deadline))

    async def end(self) -> None:
        """End the background tasks. Called after `closed` is set."""
        self._timer.set(None)
        await self._tasks.end()
        self._profiles.close()

    # -- the inbox ---------------------------------------------------------------------------------

    def post(self, event: ev.Event) -> None:
        """Handle an event and all events that result from it before returning.

        While another event is being handled, only enqueue it; it is handled right after that one.
        """
        self._inbox.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._inbox:
                self._handle(self._inbox.popleft())
        finally:
            self._handling = False
        if self._closing and (self._scheduler.at_rest or self._is_overdue()):
            self.closed.set()

    def _is_overdue(self) -> bool:
        """Return True if the deadline has passed and only clients that do not read are left."""
        return now() >= self._deadline and not self._workers and not self._waiting

    def _handle(self, event: ev.Event) -> None:
        commands = self._scheduler.handle(event)
        self._observe(event, commands)
        for command in commands:
            self._execute(command)

    def _execute(self, command: od.Command) -> None:
        match command:
            case od.AssignWorker(request, worker):
                self._assign(request, worker)
            case od.Reject():
                self._reject(command)
            case od.Start():
                self._start(command)
            case od.Stop(worker, reason):
                self._stop(worker, reason)
            case od.Kill():
                self._kill(command)
            case od.CheckLiveness(worker):
                self._check_liveness(worker)
            case od.PrefetchFiles() | od.Preload():
                self._load_ahead(command)
            case od.SampleMemory():
                self._tasks.run(self._sample_memory(), "memory sample")
            case od.QueryFreeMemory():
                self.post(ev.FreeMemoryReported(now(), memory.free()))
            case od.SaveProfile(worker, profile) if worker in self._workers:
                self._profiles.save(self._workers[worker].identity, profile)
            case od.SetTimer(when):
                self._timer.set(when)

    # -- commands ----------------------------------------------------------------------------------

    def _assign(self, request: ev.RequestId, worker: ev.WorkerId) -> None:
        future = self._waiting.pop(request)
        lease = self._workers[worker].lease(request, worker)
        if future.cancelled():
            self.release(lease, answered=False)
        else:
            future.set_result(lease)

    def _load_ahead(self, command: od.PrefetchFiles | od.Preload) -> None:
        if isinstance(command, od.PrefetchFiles):
            name, folder = command.spec.name, self._spawn_context.home
            self._tasks.run(prefetch(command.spec, folder), f"prefetch of {name}")
        else:
            self._tasks.run(self._preload(command.model), f"load of {command.model}")

    def _reject(self, command: od.Reject) -> None:
        future = self._waiting.pop(command.request)
        if not future.cancelled():
            future.set_exception(RejectedError(command))

    def _start(self, command: od.Start) -> None:
        spec, worker = command.spec, command.worker
        output = self._logs.of(spec.name)
        identity = self._profiles.identity(spec)
        handle = self._workers[worker] = WorkerHandle(None, wall(), identity)
        try:
            handle.process = WorkerProcess(
                worker, spec, self._spawn_context, self, output, self._standby
            )
        except OSError as error:
            reason = f"{spec.launch.argv[0]} can't be run: {error.strerror}"
            self._log.warning("%s: %s", spec.name, reason)
            self.worker_exited(worker, reason, killed_externally=False)
            return
        self._log.info("%s: started as pid %d", spec.name, handle.process.pid)
        if not spec.launch.builtin:
            handle.probe = self._tasks.run(self._probe(handle.process), f"probe of {spec.name}")

    def _stop(self, worker: ev.WorkerId, reason: str) -> None:
        process = self._process(worker)
        if process is not None:
            self._log.info("%s: stopping pid %d: %s", process.spec.name, process.pid, reason)
            process.stop()

    def _kill(self, command: od.Kill) -> None:
        process, reason = self._process(command.worker), command.reason
        if process is not None:
            self._log.warning("%s: killing pid %d: %s", process.spec.name, process.pid, reason)
            process.kill_for(reason) if command.hung else process.kill()

    def _check_liveness(self, worker: ev.WorkerId) -> None:
        process = self._process(worker)
        if process is not None:
            liveness, name = self._workers[worker].liveness, process.spec.name
            self._tasks.run(self._report_liveness(process, liveness), f"liveness check of {name}")
            if process.spec.serving.liveness_probe:
                self._tasks.run(liveness.probe(process, self._session), f"liveness probe of {name}")

    async def _report_liveness(self, process: WorkerProcess, liveness: Liveness) -> None:
        """Report the last progress; inspect the process only if the last signal is not recent."""
        if now() - liveness.last() > process.spec.serving.hang_timeout / 4:
            await liveness.look(process)
        self.post(ev.LivenessReported(now(), process.worker, liveness.last()))

    def _process(self, worker: ev.WorkerId) -> WorkerProcess | None:
        """Return the worker's process, or None if it exited and the event is still in the inbox."""
        handle = self._workers.get(worker)
        return handle.process if handle else None

    async def _sample_memory(self) -> None:
        pids = {h.process.pid: w for w, h in self._workers.items() if h.process is not None}
        loop = asyncio.get_running_loop()
        sample = await loop.run_in_executor(None, memory.sample, list(pids))
        held = {pids[pid]: held for pid, held in sample.held.items()}
        self.post(ev.MemorySampled(now(), sample.used_percent, held, sample.pressure_percent))

    # -- reports of workers ------------------------------------------------------------------------

    async def _probe(self, process: WorkerProcess) -> None:
        try:
            await wait_until_ready(process, self._session)
        except PortOwnerError as error:
            self._log.warning("%s: %s", process.spec.name, error)
            process.kill_for(str(error))
            return
        self._worker_ready(process.worker)

    def worker_reported(self, worker: ev.WorkerId, message: Message) -> None:
        """Handle a message of a built-in worker: a heartbeat, or its readiness."""
        handle = self._workers[worker]
        handle.liveness.last_heartbeat = now()
        if isinstance(message, ReadyMessage):
            handle.resumable, handle.devices = message.resumable, message.devices
            self._worker_ready(worker, message.slots)

    def _worker_ready(self, worker: ev.WorkerId, slots: int = 0) -> None:
        handle = self._workers[worker]
        assert handle.process is not None
        handle.process.mark_ready()
        took = now() - handle.since
        name, url = handle.process.spec.name, handle.process.base_url
        self._log.info("%s: ready after %.2f s at %s", name, took, url)
        self.post(ev.WorkerReady(now(), worker, slots))

    def worker_exited(self, worker: ev.WorkerId, reason: str, killed_externally: bool) -> None:
        """Handle the exit of a worker's process, after its last message."""
        handle = self._workers.pop(worker)
        if handle.probe is not None:
            handle.probe.cancel()
        if handle.process is not None:
            self._log.info("%s: pid %d: %s", handle.process.spec.name, handle.process.pid, reason)
        handle.exit_reason = reason
        handle.gone.set()
        self.post(ev.WorkerExited(now(), worker, reason, killed_externally))
