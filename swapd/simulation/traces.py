"""Traces: who asks for which model when, and how much there is to do.

Made traces, each from a seed. What they assume is said here and in docs/policies.md.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

COLUMNS = ("time", "model", "prompt_tokens", "output_tokens", "tenant")


GIB = 2**30
FAST, SLOW = 2.0 * GIB, 0.2 * GIB
"""Bytes read in a second from a disk in the machine, and from a hard disk or over the network."""
START = 0.5
"""Seconds from a worker's spawn to the first byte of the file read."""


@dataclass(frozen=True, slots=True)
class TraceModel:
    """Resources of a model."""

    bytes: int
    speed: float = FAST
    """Bytes of it read in a second."""

    @property
    def load(self) -> float:
        """Seconds from a worker's start to its being ready."""
        return START + self.bytes / self.speed


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """Request of a trace."""

    time: float
    """Seconds from the start of the trace."""
    model: str
    prompt_tokens: int
    output_tokens: int
    tenant: str = ""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of time, and the models that they ask for."""

    name: str
    asks: tuple[TraceRequest, ...]
    models: dict[str, TraceModel]


class TraceError(Exception):
    """A trace that can't be read; the text says where and why."""


def read(path: Path, models: dict[str, TraceModel], usual: TraceModel) -> Trace:
    """A trace from a CSV file with a header; models not in `models` are like the usual one."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            lack = set(COLUMNS[:4]) - set(rows.fieldnames or ())
            if lack:
                raise TraceError(f"{path}: no column {', '.join(sorted(lack))}")
            asks = [_ask(row, f"{path}:{rows.line_num}") for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise TraceError(f"{path}: {what}") from None
    names = sorted({ask.model for ask in asks})
    asks.sort(key=lambda ask: ask.time)
    return Trace(path.stem, tuple(asks), {name: models.get(name, usual) for name in names})


def _ask(row: dict[str, str], where: str) -> TraceRequest:
    try:
        time, prompt, output = (float(row[column]) for column in (COLUMNS[0], *COLUMNS[2:4]))
    except (TypeError, ValueError):
        raise TraceError(f"{where}: time and tokens must be numbers") from None
    if not row["model"] or not 0 <= time < 1e9 or min(prompt, output) < 0:
        raise TraceError(f"{where}: a model, a time and tokens of 0 or more are needed")
    return TraceRequest(time, row["model"], int(prompt), int(output), row.get("tenant") or "")


def write(path: Path, asks: Iterable[TraceRequest]) -> None:
    """The requests as a CSV file that `read` reads."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        rows.writerows(
            (f"{a.time:.3f}", a.model, a.prompt_tokens, a.output_tokens, a.tenant) for a in asks
        )


SIZES_GIB = (0.3, 0.5, 0.8, 1.1, 1.8, 2.5, 4.4, 4.9, 5.7, 7.2, 9.0, 12.0, 14.5, 18.5, 20.0, 24.0)
"""Usual sizes of quantised models, from embeddings to 30 billion parameters and more."""


def _models(rng: random.Random, even: bool = False) -> dict[str, TraceModel]:
    """Models of the usual sizes, each third one on a slow disk (none if `even`), in an order that
    has nothing to do with either."""
    made = {}
    for i, size in enumerate(SIZES_GIB):
        slow = i % 3 == 1 and not even
        name = f"{size:g}g-slow" if slow else f"{size:g}g"
        made[name] = TraceModel(int(size * GIB), SLOW if slow else FAST)
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
        asks.append(TraceRequest(now, _by_popularity(rng, names, 1.0), *_tokens(rng)))
    return Trace("zipf-even" if even else "zipf", tuple(asks), models)


def zipf_even(seed: int, hours: float) -> Trace:
    """The same with all models on a fast disk: what loading costs goes by the bytes alone."""
    return zipf(seed, hours, even=True)


def _session(rng: random.Random, start: float, model: str, tenant: str) -> Iterator[TraceRequest]:
    """A conversation: 8 turns on the average, a median pause of 30 s between them."""
    now = start
    while True:
        yield TraceRequest(now, model, *_tokens(rng), tenant)
        if rng.random() < 1 / 8:
            return
        now += 5 + rng.lognormvariate(math.log(30), 0.8)


def _sessions(rng: random.Random, hours: float, rate: Callable[[float], float]) -> Trace:
    """Thirty people, each with two models of their own choice, who come back at `rate` (in
    sessions an hour, all together)."""
    models = _models(rng)
    names = list(models)
    people = {f"u{i}": [_by_popularity(rng, names, 0.8) for _ in range(2)] for i in range(30)}
    asks: list[TraceRequest] = []
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
        asks.extend(TraceRequest(now + i, model, *_tokens(rng), "job") for i in range(40))
    asks.sort(key=lambda ask: ask.time)
    return Trace("bursts", tuple(asks), made.models)


def scan(seed: int, hours: float) -> Trace:
    """Conversations, and every two hours a client that tries all models one after the other."""
    rng = random.Random(seed)
    made = _sessions(rng, hours, lambda _: 8.0)
    asks = list(made.asks)
    for hour in range(1, int(hours), 2):
        for i, model in enumerate(made.models):
            asks.append(TraceRequest(hour * 3600 + 45.0 * i, model, *_tokens(rng), "scan"))
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
