"""Two situations that test turns and shares: ping-pong between models, and a greedy tenant."""

from __future__ import annotations

import random
from collections.abc import Iterable

from swapd.domain.models import Limits
from swapd.simulation.machine import Hardware, Machine, Outcome, Served
from swapd.simulation.trace import GIB, Ask, Model

TOKENS = (400, 150)
"""Of the prompt and the answer of a greedy tenant's request, and of the others', on the average."""


def apart(limits: Limits, seconds: float) -> Outcome:
    """Two clients, each of which asks one of two models again as fast as it is answered."""
    models = {"a": Model(4 * GIB), "b": Model(4 * GIB)}

    def again(served: Served, now: float) -> Iterable[Ask]:
        if now < seconds:
            yield Ask(now, served.ask.model, 50, 20, served.ask.tenant)

    first = [Ask(0.0, "a", 50, 20, "x"), Ask(0.01, "b", 50, 20, "y")]
    return Machine(models, limits, Hardware(), 1, again).run(first)


def greedy(
    limits: Limits,
    hours: float,
    times: float,
    share: float = 0.8,
    slots: int = 4,
    seed: int = 1,
) -> Outcome:
    """Four tenants who ask one model at random times, and a fifth who asks so many times as much
    as each of them; with 0 it is away.

    The four take so great a share of what the model can do.
    """
    rng, model, hardware = random.Random(seed), Model(4 * GIB), Hardware()
    usual = hardware.serve(Ask(0.0, "a", *TOKENS), model.bytes)
    pace = 4 * usual / slots / share
    asks = []
    for tenant, rate in (*((f"t{i}", 1.0) for i in range(4)), ("greedy", times)):
        now = 0.0
        while rate and (now := now + rng.expovariate(rate / pace)) < hours * 3600:
            size = rng.uniform(0.5, 1.5)
            prompt, output = (int(size * tokens) for tokens in TOKENS)
            asks.append(Ask(now, "a", prompt, output, tenant))
    return Machine({"a": model}, limits, hardware, slots).run(asks)
