"""A simulated machine: runs the real scheduler on a trace, in virtual time.

Loading takes a start and the reading of the file; a request takes the reading of its prompt and
the writing of its answer, slower the larger the model, and does not slow others down. Nothing
fails. What a request waited, what was loaded when and what each tenant was served is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from swapd.domain import commands as od
from swapd.domain import events as ev
from swapd.domain.models import Catalog, LaunchSpec, Limits, ModelSpec, ServingPolicy
from swapd.scheduler.scheduler import Scheduler
from swapd.simulation.traces import GIB, TraceModel, TraceRequest


@dataclass(frozen=True, slots=True)
class Hardware:
    """Speed of the machine."""

    stop_seconds: float = 0.2
    prompt_bytes: float = 2000.0 * GIB
    """Tokens of prompt a second, times the bytes of the model."""
    output_bytes: float = 150.0 * GIB
    """Tokens written a second, times the bytes of the model."""

    def serve(self, ask: TraceRequest, size: int) -> float:
        """Seconds that a request takes. No model is faster than one of half a GiB."""
        size = max(size, GIB // 2)
        return (
            ask.prompt_tokens * size / self.prompt_bytes
            + ask.output_tokens * size / self.output_bytes
        )


@dataclass(slots=True)
class Residency:
    """Stay of a model in memory."""

    model: str
    started: float
    up: float | None = None
    stopped: float | None = None
    gone: float | None = None


@dataclass(slots=True)
class ServedRequest:
    """Outcome of a request."""

    ask: TraceRequest
    granted: float | None = None
    ended: float | None = None
    refused: od.RejectReason | None = None


@dataclass(slots=True)
class Outcome:
    """Records of one run."""

    served: list[ServedRequest] = field(default_factory=list)
    stays: list[Residency] = field(default_factory=list)
    events: int = 0
    end: float = 0.0


Again = Callable[[ServedRequest, float], Iterable[TraceRequest]]
"""Function that returns a client's next requests after an answer or a rejection."""


BOUNDLESS: dict[str, Any] = {"start_timeout": 1e6, "max_queue": 10**6}
"""Serving policy with limits that a simulated worker never reaches."""


class SimulatedHost:
    """Simulation of one run. `again` returns the requests that clients send after an answer."""

    def __init__(
        self,
        models: dict[str, TraceModel],
        limits: Limits,
        hardware: Hardware,
        slots: int,
        again: Again | None = None,
        ttl: float = 0.0,
    ) -> None:
        specs = {
            name: ModelSpec(
                name,
                LaunchSpec((name,)),
                ServingPolicy(need_bytes=model.bytes, slots=slots, ttl=ttl, **BOUNDLESS),
            )
            for name, model in models.items()
        }
        self.core = Scheduler(Catalog(specs, limits))
        self.outcome = Outcome()
        self._models, self._hardware, self._again = models, hardware, again
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._wake: float | None = None
        self._now = 0.0
        self._stays: dict[int, Residency] = {}

    def run(self, asks: Iterable[TraceRequest]) -> Outcome:
        """Serve all of them, to the end."""
        for ask in asks:
            self._at(ask.time, lambda ask=ask: self._arrive(ask))  # type: ignore[misc]
        while self._events or self._wake is not None:
            if self._wake is not None and (not self._events or self._wake < self._events[0][0]):
                if not self._events and all(s.granted or s.refused for s in self.outcome.served):
                    break
                self._now, self._wake = self._wake, None
                self._tell(ev.TimerFired(self._now))
            else:
                self._now, _, deed = heappop(self._events)
                deed()
        for stay in self._stays.values():
            stay.gone = self._now
        self.outcome.end = self._now
        return self.outcome

    def _at(self, when: float, deed: Callable[[], None]) -> None:
        self._order += 1
        heappush(self._events, (when, self._order, deed))

    def _tell(self, event: ev.Event) -> None:
        self.outcome.events += 1
        for order in self.core.handle(event):
            self._carry_out(order)

    def _arrive(self, ask: TraceRequest) -> None:
        self.outcome.served.append(ServedRequest(ask))
        request = len(self.outcome.served)
        self._tell(ev.RequestArrived(self._now, request, ask.model, tenant=ask.tenant))

    def _carry_out(self, order: od.Command) -> None:
        match order:
            case od.Start(worker, spec):
                self._stays[worker] = stay = Residency(spec.name, self._now)
                self.outcome.stays.append(stay)
                took = self._models[spec.name].load
                self._at(self._now + took, lambda: self._come_up(worker))
            case od.Stop(worker):
                self._stays[worker].stopped = self._now
                self._at(self._now + self._hardware.stop_seconds, lambda: self._exit(worker))
            case od.AssignWorker(request):
                served = self.outcome.served[request - 1]
                served.granted = self._now
                took = self._hardware.serve(served.ask, self._models[served.ask.model].bytes)
                self._at(self._now + took, lambda: self._finish(request, served))
            case od.Reject(request, why):
                served = self.outcome.served[request - 1]
                served.refused = why
                self._ask_again(served)
            case od.SetTimer(when):
                self._wake = when
            case _:
                pass

    def _come_up(self, worker: int) -> None:
        if worker in self._stays and self._stays[worker].stopped is None:
            self._stays[worker].up = self._now
            self._tell(ev.WorkerReady(self._now, worker))

    def _exit(self, worker: int) -> None:
        if worker in self._stays:
            self._stays.pop(worker).gone = self._now
            self._tell(ev.WorkerExited(self._now, worker))

    def _finish(self, request: int, served: ServedRequest) -> None:
        served.ended = self._now
        self._tell(ev.RequestFinished(self._now, request, tokens=served.ask.tokens))
        self._ask_again(served)

    def _ask_again(self, served: ServedRequest) -> None:
        for ask in self._again(served, self._now) if self._again else ():
            self._at(max(ask.time, self._now), lambda ask=ask: self._arrive(ask))  # type: ignore[misc]
