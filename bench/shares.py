"""Cost of a greedy tenant to the others: p95 of their waits without and with it, in virtual time.

Four tenants ask one model at random times, a fifth ten times as much as each of them. Beside the
scheduler's rule stands one that knows who the fifth is: it is served when none of the four waits,
and they are by age. No rule that interrupts nothing and leaves no slot idle can spare them more.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from swapd.domain.models import Limits
from swapd.scheduler.queue import PriorityLevel, QueuedRequest
from swapd.simulation.report import percentile
from swapd.simulation.run import greedy

SHARES = (0.5, 0.6, 0.7, 0.75, 0.8)
SLOTS = (1, 2, 4)


@contextmanager
def the_fifth_last() -> Iterator[None]:
    """The rule that knows."""
    real = PriorityLevel.next

    def told(self: PriorityLevel, slots: int, now: float) -> QueuedRequest:
        del slots, now
        heads = (next(iter(line.values())) for line in self.by_tenant.values())
        return min(heads, key=lambda head: (head.tenant == "greedy", head.position))

    PriorityLevel.next = told  # type: ignore[method-assign]
    try:
        yield
    finally:
        PriorityLevel.next = real  # type: ignore[method-assign]


def p95(times: float, share: float, slots: int, hours: float, seeds: int) -> float:
    """The 95th percentile of the four tenants' waits, mean of the seeds."""
    found = []
    for seed in range(1, seeds + 1):
        limits = Limits(interval=1e9, max_queued=0)
        outcome = greedy(limits, hours, times, share, slots, seed)
        others = (s for s in outcome.served if s.ask.tenant != "greedy")
        found.append(percentile([(s.granted or 0.0) - s.ask.time for s in others], 0.95))
    return sum(found) / seeds


def row(share: float, hours: float, seeds: int) -> str:
    """Without and with the fifth for each number of slots, and their ratio."""
    cells = []
    for slots in SLOTS:
        without, beside = (p95(times, share, slots, hours, seeds) for times in (0, 10))
        cells.append(f"{without:.1f} → {beside:.1f} s ({beside / without:.2f})")
    return f"| {share:.0%} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    print("| the four take | 1 slot | 2 slots | 4 slots |\n|---|---|---|---|")
    for share in SHARES:
        print(row(share, options.hours, options.seeds), flush=True)
    print("\nthe fifth always last")
    with the_fifth_last():
        for share in SHARES:
            print(row(share, options.hours, options.seeds), flush=True)


if __name__ == "__main__":
    main()
