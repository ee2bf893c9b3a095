"""Prometheus metrics, updated from the scheduler's events and commands."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from swapd.domain import commands as od
from swapd.domain import events as ev
from swapd.supervisor import Supervisor

LOAD_BUCKETS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
FAULTS = {
    "retried": ("swapd_requests_retried", "Requests retried on another worker after an exit"),
    "resumed": ("swapd_resumed", "Streams resumed on another worker"),
    "hung": ("swapd_hung", "Workers killed because they made no progress"),
    "poison": ("swapd_poison", "Requests rejected because workers crashed while serving them"),
}
"""Name and help text of a counter, by kind of fault."""
WAIT_BUCKETS = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters and histograms of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        reg = self.registry
        self._requests = Counter("swapd_requests", "Requests that arrived", ["model"], registry=reg)
        self._rejected = Counter(
            "swapd_requests_rejected", "Requests rejected, by reason", ["reason"], registry=reg
        )
        self._failed = Counter(
            "swapd_failed",
            "Assigned requests without a complete response",
            ["model"],
            registry=reg,
        )
        self._starts = Counter("swapd_starts", "Workers started", ["model"], registry=reg)
        self._stops = Counter("swapd_stops", "Workers stopped", ["model"], registry=reg)
        self._load = Histogram(
            "swapd_load_seconds",
            "Time from a worker's start to its readiness",
            ["model"],
            buckets=LOAD_BUCKETS,
            registry=reg,
        )
        self._wait = Histogram(
            "swapd_wait_seconds",
            "Time from a request's arrival to the assignment of a worker",
            ["model"],
            buckets=WAIT_BUCKETS,
            registry=reg,
        )
        self._http_rejected = Counter(
            "swapd_http_rejected",
            "HTTP requests rejected before a model was looked up, by reason",
            ["reason"],
            registry=reg,
        )
        self._faults = {
            kind: Counter(name, text, ["model"], registry=reg)
            for kind, (name, text) in FAULTS.items()
        }
        self._counts: dict[str, dict[str, int]] = {}
        self._started: dict[ev.WorkerId, tuple[str, float]] = {}
        self._arrived: dict[ev.RequestId, tuple[str, float]] = {}
        self._assigned: dict[ev.RequestId, str] = {}

    def resumed(self, model: str) -> None:
        """Count a stream that is resumed on another worker."""
        self._fault("resumed", model)

    def faults(self, model: str) -> dict[str, int]:
        """Return the number of faults of each kind that a model had so far."""
        return self._counts.get(model) or dict.fromkeys(FAULTS, 0)

    def _fault(self, kind: str, model: str) -> None:
        self._faults[kind].labels(model).inc()
        self._counts.setdefault(model, dict.fromkeys(FAULTS, 0))[kind] += 1

    def observe(self, event: ev.Event, commands: list[od.Command]) -> None:
        """Update the metrics from one event and the commands that resulted from it."""
        match event:
            case ev.RequestArrived(now, request, model):
                self._arrived[request] = (model, now)
                self._requests.labels(model).inc()
            case ev.RequestCancelled(_, request):
                self._arrived.pop(request, None)
            case ev.RequestFinished(_, request, answered):
                model = self._assigned.pop(request)
                if not answered:
                    self._failed.labels(model).inc()
            case ev.RequestRetried(now, request):
                model = self._assigned.pop(request)
                self._arrived[request] = (model, now)
                self._fault("retried", model)
            case ev.WorkerReady(now, worker):
                model, since = self._started[worker]
                self._load.labels(model).observe(now - since)
            case ev.WorkerExited(_, worker):
                self._started.pop(worker, None)
        for command in commands:
            self._observe_command(command, event.now)

    def http_rejected(self, reason: str) -> None:
        """Count a request that access control rejected."""
        self._http_rejected.labels(reason).inc()

    def _observe_command(self, command: od.Command, now: float) -> None:
        match command:
            case od.AssignWorker(request):
                model, since = self._arrived.pop(request)
                self._assigned[request] = model
                self._wait.labels(model).observe(now - since)
            case od.Reject(request, reason):
                model, _ = self._arrived.pop(request)
                if reason is od.RejectReason.POISON:
                    self._fault("poison", model)
                self._rejected.labels(reason.value).inc()
            case od.Start(worker, spec):
                self._started[worker] = (spec.name, now)
                self._starts.labels(spec.name).inc()
            case od.Kill(worker, hung=True):
                self._fault("hung", self._started[worker][0])
            case od.Stop(worker):
                self._stops.labels(self._started[worker][0]).inc()

    def watch(self, supervisor: Supervisor) -> None:
        """Export the present state of a supervisor as gauges."""
        self.registry.register(_StateCollector(supervisor))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _StateCollector(Collector):
    """Gauges that are read from the supervisor at each scrape."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        workers = GaugeMetricFamily("swapd_workers", "Running workers", labels=["model", "state"])
        busy = GaugeMetricFamily("swapd_busy_slots", "Slots in use", labels=["model"])
        memory = GaugeMetricFamily(
            "swapd_worker_bytes", "Memory accounted to a worker", labels=["model"]
        )
        waiting = GaugeMetricFamily(
            "swapd_queue_depth", "Requests that are queued", labels=["model"]
        )
        for snapshot in self._supervisor.snapshots():
            status = snapshot.status
            workers.add_metric([status.model, status.state], 1)
            busy.add_metric([status.model], status.busy)
            memory.add_metric([status.model], status.bytes)
        for model in self._supervisor.catalog.models:
            if count := self._supervisor.waiting(model):
                waiting.add_metric([model], count)
        yield from (workers, busy, memory, waiting)
