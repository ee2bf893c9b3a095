"""Made traces, each from a seed. What they assume is said here and in docs/policies.md."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from swapd.simulation.trace import FAST, GIB, SLOW, Ask, Model, Trace

SIZES_GIB = (0.3, 0.5, 0.8, 1.1, 1.8, 2.5, 4.4, 4.9, 5.7, 7.2, 9.0, 12.0, 14.5, 18.5, 20.0, 24.0)
"""Usual sizes of quantised models, from embeddings to 30 billion parameters and more."""


def _models(rng: random.Random, even: bool = False) -> dict[str, Model]:
    """Models of the usual sizes, each third one on a slow disk (none if `even`), in an order that
    has nothing to do with either."""
    made = {}
    for i, size in enumerate(SIZES_GIB):
        slow = i % 3 == 1 and not even
        name = f"{size:g}g-slow" if slow else f"{size:g}g"
        made[name] = Model(int(size * GIB), SLOW if slow else FAST)
    order = list(made)
    rng.shuffle(order)
    return {name: made[name] for name in order}


def _tokens(rng: random.Random) -> tuple[int, int]:
    """Prompt and output of one request: medians 400 and 150, long tails."""
    prompt = min(8000, int(rng.lognormvariate(math.log(400), 0.9)) + 1)
    return prompt, min(2000, int(rng.lognormvariate(math.log(150), 0.8)) + 1)


def _by_popularity(rng: random.Random, names: list[str], exponent: float) -> str:
    """A name, the n-th one with a likelihood of 1/n to the exponent."""
    weights = [1 / (n + 1) ** exponent for n in range(len(names))]
    return rng.choices(names, weights)[0]


def zipf(seed: int, hours: float, even: bool = False) -> Trace:
    """Independent requests at random times, one in 40 s on the average, popularity 1/rank."""
    rng = random.Random(seed)
    models = _models(rng, even)
    names, asks, now = list(models), [], 0.0
    while (now := now + rng.expovariate(1 / 40)) < hours * 3600:
        asks.append(Ask(now, _by_popularity(rng, names, 1.0), *_tokens(rng)))
    return Trace("zipf-even" if even else "zipf", tuple(asks), models)


def zipf_even(seed: int, hours: float) -> Trace:
    """The same with all models on a fast disk: what loading costs goes by the bytes alone."""
    return zipf(seed, hours, even=True)


def _session(rng: random.Random, start: float, model: str, tenant: str) -> Iterator[Ask]:
    """A conversation: 8 turns on the average, a median pause of 30 s between them."""
    now = start
    while True:
        yield Ask(now, model, *_tokens(rng), tenant)
        if rng.random() < 1 / 8:
            return
        now += 5 + rng.lognormvariate(math.log(30), 0.8)


def _sessions(rng: random.Random, hours: float, rate: Callable[[float], float]) -> Trace:
    """Thirty people, each with two models of their own choice, who come back at `rate` (in
    sessions an hour, all together)."""
    models = _models(rng)
    names = list(models)
    people = {f"u{i}": [_by_popularity(rng, names, 0.8) for _ in range(2)] for i in range(30)}
    asks: list[Ask] = []
    now, most = 0.0, max(rate(h * 900.0) for h in range(96))
    while (now := now + rng.expovariate(most / 3600)) < hours * 3600:
        if rng.random() < rate(now) / most:
            who = rng.choice(list(people))
            model = people[who][0] if rng.random() < 0.75 else people[who][1]
            asks.extend(_session(rng, now, model, who))
    asks.sort(key=lambda ask: ask.time)
    return Trace("sessions", tuple(asks), models)


def sessions(seed: int, hours: float) -> Trace:
    """People who hold conversations and come back to their models, ten times an hour together."""
    return _sessions(random.Random(seed), hours, lambda _: 10.0)


def daily(seed: int, hours: float) -> Trace:
    """The same, twenty times an hour at three in the afternoon and next to never at night."""

    def rate(now: float) -> float:
        return 20.0 * max(0.02, math.sin(math.pi * (now % 86400 - 7 * 3600) / (16 * 3600)))

    made = _sessions(random.Random(seed), hours, rate)
    return Trace("daily", made.asks, made.models)


def bursts(seed: int, hours: float) -> Trace:
    """Conversations, and each half hour a job: forty requests for one model, one a second."""
    rng = random.Random(seed)
    made = _sessions(rng, hours, lambda _: 6.0)
    asks, names, now = list(made.asks), list(made.models), 0.0
    while (now := now + rng.expovariate(1 / 1800)) < hours * 3600:
        model = rng.choice(names)
        asks.extend(Ask(now + i, model, *_tokens(rng), "job") for i in range(40))
    asks.sort(key=lambda ask: ask.time)
    return Trace("bursts", tuple(asks), made.models)


def scan(seed: int, hours: float) -> Trace:
    """Conversations, and every two hours somebody who tries all models one after the other."""
    rng = random.Random(seed)
    made = _sessions(rng, hours, lambda _: 8.0)
    asks = list(made.asks)
    for hour in range(1, int(hours), 2):
        for i, model in enumerate(made.models):
            asks.append(Ask(hour * 3600 + 45.0 * i, model, *_tokens(rng), "scan"))
    asks.sort(key=lambda ask: ask.time)
    return Trace("scan", tuple(asks), made.models)


MADE: Mapping[str, Callable[[int, float], Trace]] = MappingProxyType(
    {
        "zipf": zipf,
        "zipf-even": zipf_even,
        "sessions": sessions,
        "daily": daily,
        "bursts": bursts,
        "scan": scan,
    }
)
