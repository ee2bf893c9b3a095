"""The command: replay traces under several policies, compare, and draw.

Two situations that test turns and shares: ping-pong between models, and a greedy tenant.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from swapd.domain.models import Limits
from swapd.scheduler.eviction import POLICIES
from swapd.simulation import charts
from swapd.simulation.belady import OfflineBounds, bounds
from swapd.simulation.machine import Hardware, Outcome, ServedRequest, SimulatedHost
from swapd.simulation.report import SimulationResult, measure, table
from swapd.simulation.traces import (
    FAST,
    GIB,
    MADE,
    Trace,
    TraceError,
    TraceModel,
    TraceRequest,
    read,
    write,
)

USUAL_GIB = 4.0


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """Options of a simulation."""

    traces: tuple[Trace, ...]
    policies: tuple[str, ...] = tuple(POLICIES)
    memory: int = 64 * GIB
    slots: int = 4
    ttl: float = 1800.0
    """Of all models, under ttl and lru-ttl; the others are compared without."""
    max_turn: float = Limits().max_turn


@dataclass(frozen=True, slots=True)
class Comparison:
    """Results of a trace under all policies."""

    trace: Trace
    bounds: OfflineBounds
    results: list[SimulationResult] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)


def run(options: SimulationOptions) -> list[Comparison]:
    """Replay each trace under each policy."""
    compared = []
    for trace in options.traces:
        comparison = Comparison(trace, bounds(trace, options.memory))
        for policy in options.policies:
            outcome = _one(trace, policy, options)
            comparison.results.append(measure(trace.name, policy, outcome))
            comparison.outcomes[policy] = outcome
        compared.append(comparison)
    return compared


def _one(trace: Trace, policy: str, options: SimulationOptions) -> Outcome:
    limits = Limits(
        budget_bytes=options.memory,
        policy=policy,
        max_queued=0,
        max_turn=options.max_turn,
        interval=1e9,
    )
    ttl = options.ttl if policy in ("ttl", "lru-ttl") else 0.0
    machine = SimulatedHost(trace.models, limits, Hardware(), options.slots, ttl=ttl)
    return machine.run(trace.asks)


def main(argv: Sequence[str]) -> int:
    """Simulate as the arguments say; print the tables. Returns the exit status."""
    parsed = _parser().parse_args(argv)
    try:
        traces = tuple(_traces(parsed))
        policies = tuple(parsed.policies.split(","))
        if unknown := [p for p in policies if p not in POLICIES]:
            raise TraceError(f"no policy {unknown[0]!r}; there are {', '.join(POLICIES)}")
        memory = int(parsed.memory * GIB)
        options = SimulationOptions(
            traces, policies, memory, parsed.slots, parsed.ttl, parsed.max_turn
        )
        if parsed.save:
            parsed.save.mkdir(parents=True, exist_ok=True)
            for trace in traces:
                write(parsed.save / f"{trace.name}.csv", trace.asks)
        compared = run(options)
        _tell(compared, options, parsed.json)
        if parsed.charts:
            for c in compared:
                parsed.charts.mkdir(parents=True, exist_ok=True)
                files = charts.draw(parsed.charts, c.trace.name, c.outcomes)
                print("\n".join(map(str, files)), file=sys.stderr)
    except (TraceError, charts.NoChartsError, OSError) as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 1
    return 0


def _traces(parsed: argparse.Namespace) -> list[Trace]:
    models = dict(_model(text) for text in parsed.model)
    if parsed.trace:
        return [read(path, models, TraceModel(int(USUAL_GIB * GIB))) for path in parsed.trace]
    names = parsed.made.split(",") if parsed.made else list(MADE)
    if unknown := [name for name in names if name not in MADE]:
        raise TraceError(f"no made trace {unknown[0]!r}; there are {', '.join(MADE)}")
    return [MADE[name](parsed.seed, parsed.hours) for name in names]


def _model(text: str) -> tuple[str, TraceModel]:
    """NAME=GIB or NAME=GIB@GIB_PER_SECOND."""
    name, _, rest = text.partition("=")
    size, _, speed = rest.partition("@")
    try:
        model = TraceModel(int(float(size) * GIB), float(speed) * GIB if speed else FAST)
    except ValueError:
        raise TraceError(f"--model {text}: not NAME=GIB or NAME=GIB@GIB_PER_SECOND") from None
    if not name or model.bytes <= 0 or model.speed <= 0:
        raise TraceError(f"--model {text}: a name and numbers above 0 are needed")
    return name, model


def _tell(compared: list[Comparison], options: SimulationOptions, as_json: bool) -> None:
    for c in compared:
        if as_json:
            for result in c.results:
                print(json.dumps({**asdict(result), **asdict(c.bounds)}))
            continue
        size = sum(m.bytes for m in c.trace.models.values()) / GIB
        print(
            f"{c.trace.name}: {len(c.trace.asks)} requests, {len(c.trace.models)} models of"
            f" {size:.0f} GiB, memory {options.memory / GIB:.0f} GiB\n"
            f"{table(c.results, c.bounds)}\n"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simulate", description="Replay a trace under several policies and compare them."
    )
    add = parser.add_argument
    add(
        "--trace",
        type=Path,
        nargs="+",
        help="CSV: time, model, prompt_tokens, output_tokens, tenant",
    )
    add("--made", help=f"made traces instead, of {', '.join(MADE)} (default: all)")
    add("--seed", type=int, default=1)
    add("--hours", type=float, default=24.0, help="length of made traces (default 24)")
    add("--policies", default=",".join(POLICIES), help="default: all")
    add("--memory", type=float, default=64.0, help="GiB for models (default 64)")
    add("--model", action="append", default=[], help="NAME=GIB[@GIB_PER_SECOND] for --trace")
    add("--slots", type=int, default=4, help="requests that a worker serves at once (default 4)")
    add("--ttl", type=float, default=1800.0, help="seconds, for ttl and lru-ttl (default 1800)")
    add("--max-wait", type=float, default=Limits().max_turn, dest="max_turn")
    add("--charts", type=Path, help="folder for charts (needs matplotlib)")
    add("--save", type=Path, help="folder to write made traces to, as CSV")
    add("--json", action="store_true", help="one line of JSON for each run")
    return parser


TOKENS = (400, 150)
"""Of the prompt and the answer of a greedy tenant's request, and of the others', on the average."""


def apart(limits: Limits, seconds: float) -> Outcome:
    """Two clients, each of which asks one of two models again as fast as it is answered."""
    models = {"a": TraceModel(4 * GIB), "b": TraceModel(4 * GIB)}

    def again(served: ServedRequest, now: float) -> Iterable[TraceRequest]:
        if now < seconds:
            yield TraceRequest(now, served.ask.model, 50, 20, served.ask.tenant)

    first = [TraceRequest(0.0, "a", 50, 20, "x"), TraceRequest(0.01, "b", 50, 20, "y")]
    return SimulatedHost(models, limits, Hardware(), 1, again).run(first)


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
    rng, model, hardware = random.Random(seed), TraceModel(4 * GIB), Hardware()
    usual = hardware.serve(TraceRequest(0.0, "a", *TOKENS), model.bytes)
    pace = 4 * usual / slots / share
    asks = []
    for tenant, rate in (*((f"t{i}", 1.0) for i in range(4)), ("greedy", times)):
        now = 0.0
        while rate and (now := now + rng.expovariate(rate / pace)) < hours * 3600:
            size = rng.uniform(0.5, 1.5)
            prompt, output = (int(size * tokens) for tokens in TOKENS)
            asks.append(TraceRequest(now, "a", prompt, output, tenant))
    return SimulatedHost({"a": model}, limits, hardware, slots).run(asks)
