"""Figures of a run, and the table that compares runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from swapd.simulation.belady import OfflineBounds
from swapd.simulation.machine import Outcome


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """Figures of a trace under a policy, in seconds unless the name says otherwise."""

    trace: str
    policy: str
    requests: int
    refused: int
    swaps: int
    """Workers started."""
    loading: float
    """Spent by all workers from their start until they were ready, or were stopped."""
    p50: float
    """Waits from arrival to grant, of those that were served."""
    p95: float
    p99: float
    longest: float
    fairness: float
    """Jain's index of the tokens that each tenant was served of those it asked for."""
    events: int


def percentile(values: Sequence[float], share: float) -> float:
    """The least of the values that so great a share is not above; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def jain(values: Sequence[float]) -> float:
    """1 when all are equal, 1/n when one has everything."""
    squares = sum(v * v for v in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def waits(outcome: Outcome) -> list[float]:
    """Seconds from arrival to grant of each request that was served."""
    return [s.granted - s.ask.time for s in outcome.served if s.granted is not None]


def loading(outcome: Outcome) -> float:
    """Seconds that workers spent loading."""
    ends = ((s.started, s.up if s.up is not None else s.stopped) for s in outcome.stays)
    return sum(end - start for start, end in ends if end is not None)


def measure(trace: str, policy: str, outcome: Outcome) -> SimulationResult:
    """The figures of one run."""
    waited = waits(outcome)
    asked: dict[str, float] = {}
    got: dict[str, float] = {}
    for served in outcome.served:
        tenant = served.ask.tenant
        asked[tenant] = asked.get(tenant, 0) + served.ask.tokens
        got[tenant] = got.get(tenant, 0) + (served.ask.tokens if served.ended else 0)
    return SimulationResult(
        trace=trace,
        policy=policy,
        requests=len(outcome.served),
        refused=sum(s.refused is not None for s in outcome.served),
        swaps=len(outcome.stays),
        loading=loading(outcome),
        p50=percentile(waited, 0.5),
        p95=percentile(waited, 0.95),
        p99=percentile(waited, 0.99),
        longest=max(waited, default=0.0),
        fairness=jain([got[t] / asked[t] for t in asked if asked[t]]),
        events=outcome.events,
    )


COLUMNS = (
    *("policy", "swaps", "loading", "of LRU", "of best"),
    *("p50", "p95", "p99", "longest", "refused", "Jain"),
)


def table(results: Iterable[SimulationResult], bounds: OfflineBounds) -> str:
    """All results for one trace, with what one who knows the future would spend."""
    results = list(results)
    lru = next((r.loading for r in results if r.policy == "lru"), 0.0)
    rows: list[tuple[str, ...]] = [COLUMNS]
    rows.extend(_row(r, lru, bounds) for r in results)
    known = (str(bounds.loads), f"{bounds.belady:,.0f} s", _share(bounds.belady, lru))
    rows.append(("(offline)", *known, *("",) * 7))
    floor = ("", f"{bounds.floor:,.0f} s", _share(bounds.floor, lru))
    rows.append(("(floor)", *floor, _share(bounds.floor, bounds.belady), *("",) * 6))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    )


def _row(r: SimulationResult, lru: float, bounds: OfflineBounds) -> tuple[str, ...]:
    return (
        *(r.policy, str(r.swaps), f"{r.loading:,.0f} s"),
        *(_share(r.loading, lru), _share(r.loading, bounds.belady)),
        *(f"{wait:.1f} s" for wait in (r.p50, r.p95, r.p99, r.longest)),
        *(str(r.refused), f"{r.fairness:.3f}"),
    )


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.2f}" if whole else ""
