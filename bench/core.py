"""Events per second of the scheduler, with a busy machine simulated in virtual time.

A hundred models of which ten fit, and a constant number of queued requests: each request that ends
is replaced by a new one. Times are CPU times of the process, so that other load on the machine
counts little. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import deque

from swapd.domain import commands as od
from swapd.domain import events as ev
from swapd.domain.models import Catalog, LaunchSpec, Limits, ModelSpec, ServingPolicy
from swapd.scheduler.scheduler import Scheduler

ROUNDS = 5
"""The best of them counts: whatever else runs on the machine can only slow one down."""
SERVE, LOAD, STOP = 0.5, 1.0, 0.1
"""Seconds of the simulated machine."""


class World:
    """Carries orders out at once or at their time, and lets a fixed number of requests wait."""

    def __init__(self, models: int, fitting: int, slots: int, tenants: int) -> None:
        specs = {
            f"m{i}": ModelSpec(
                f"m{i}",
                LaunchSpec(("x",)),
                ServingPolicy(need_bytes=1, slots=slots, max_queue=10**6),
            )
            for i in range(models)
        }
        limits = Limits(budget_bytes=fitting, max_queued=0, interval=1e9)
        self.catalog = Catalog(specs, limits)
        self.core = Scheduler(self.catalog)
        self.names, self.tenants = list(specs), tenants
        self.random = random.Random(1)
        self.now, self.requests, self.waiting = 0.0, 0, 0
        self.events: list[ev.Event] = []
        # One line for each kind of thing to come: each kind takes the same time, so all are sorted.
        self.ends: deque[tuple[float, int]] = deque()
        self.ups: deque[tuple[float, int]] = deque()
        self.exits: deque[tuple[float, int]] = deque()
        self.wake: float | None = None

    def tell(self, event: ev.Event) -> None:
        self.events.append(event)
        for order in self.core.handle(event):
            match order:
                case od.AssignWorker(request, _):
                    self.waiting -= 1
                    self.ends.append((self.now + SERVE, request))
                case od.Start(worker, _):
                    self.ups.append((self.now + LOAD, worker))
                case od.Stop(worker, _):
                    self.exits.append((self.now + STOP, worker))
                case od.SetTimer(when):
                    self.wake = when
                case od.Reject() | od.Kill():
                    raise AssertionError(order)

    def arrive(self) -> None:
        self.requests += 1
        self.waiting += 1
        tenant = f"t{self.requests % self.tenants}"
        model = self.random.choice(self.names)
        self.tell(ev.RequestArrived(self.now, self.requests, model, tenant=tenant))

    def step(self) -> None:
        """Let the next thing happen."""
        lines = [line for line in (self.ends, self.ups, self.exits) if line]
        line = min(lines, key=lambda line: line[0][0])
        if self.wake is not None and self.wake < line[0][0]:
            self.now, self.wake = self.wake, None
            self.tell(ev.TimerFired(self.now))
            return
        self.now, whom = line.popleft()
        if line is self.ends:
            self.tell(ev.RequestFinished(self.now, whom, tokens=100))
        elif line is self.ups:
            self.tell(ev.WorkerReady(self.now, whom))
        else:
            self.tell(ev.WorkerExited(self.now, whom))


def measure(models: int, waiting: int, events: int, slots: int = 1, tenants: int = 5) -> float:
    """Return the events per second for this number of models and queued requests.

    Equal events give equal commands: they are recorded once and then replayed in one go.
    """
    world = World(models, max(1, models // 10), slots, tenants)
    while len(world.events) < events + 2 * waiting:
        world.arrive() if world.waiting < waiting else world.step()
    first, rest = world.events[: 2 * waiting], world.events[2 * waiting :]
    best = 0.0
    for _ in range(ROUNDS):
        core = Scheduler(world.catalog)
        for event in first:
            core.handle(event)
        before = time.process_time()
        for event in rest:
            core.handle(event)
        best = max(best, len(rest) / (time.process_time() - before))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--slots", type=int, default=1)
    options = parser.parse_args()
    rates = {}
    for waiting in (100, 1000, 4000):
        rates[waiting] = measure(100, waiting, options.events, options.slots)
        print(f"100 models, {waiting:5d} waiting: {rates[waiting]:9,.0f} events/s")
    print(json.dumps({"events_per_second": {str(k): round(v) for k, v in rates.items()}}))


if __name__ == "__main__":
    main()
