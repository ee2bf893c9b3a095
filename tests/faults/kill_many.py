"""Repeated kills of a stream's worker at a random token; the client must notice none of them.

`python -m tests.faults.kill_many --count 100` prints how often the stream was the same as the
undisturbed one, and the length of the pauses.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.daemon import Swapd, config, eventually
from tests.faults.streams import Stream, follow, long_request, read
from tests.fixtures import demo

PROMPTS = ("Who goes there?", "Tell me of the sea.", "Say what the night says.", "Why?")


@dataclass
class Outcome:
    """Result of all the kills."""

    same: int = 0
    different: list[str] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.same + len(self.different)

    def __str__(self) -> str:
        median, worst = statistics.median(self.pauses), max(self.pauses)
        return (
            f"{self.same} of {self.count} streams complete and identical;"
            f" pause {median * 1e3:.0f} ms at the median, {worst * 1e3:.0f} ms at worst"
        )


def kill_many(swapd: Swapd, count: int, seed: int, **fields: Any) -> Outcome:
    """Request a few answers in turn; kill the worker of each at some event."""
    chance, outcome = random.Random(seed), Outcome()
    fields = {"seed": 5, **fields}
    bodies = [
        long_request("bard", messages=[{"role": "user", "content": prompt}], **fields)
        for prompt in PROMPTS
    ]
    right = [read(swapd, body) for body in bodies]
    while outcome.count < count:
        which = chance.randrange(len(bodies))
        at = chance.randrange(1, len(right[which].texts) * 2 // 3)
        before = swapd.worker("bard")
        stream = _killed(swapd, bodies[which], at)
        after = _next_worker(swapd, before["pid"])
        if after["resumed"] == before["resumed"]:
            # swapd had the whole answer before the worker was killed.
            continue
        if stream.error is None and stream.whole == right[which].whole:
            outcome.same += 1
        else:
            outcome.different.append(f"killed at event {at}: {stream}")
        outcome.pauses.append(stream.pause)
    return outcome


def _next_worker(swapd: Swapd, pid: int) -> dict[str, Any]:
    """Return the worker in `/running` that has replaced this one."""
    eventually(lambda: all(w["pid"] != pid for w in swapd.running()))
    swapd.ask("bard", max_tokens=1)
    return swapd.worker("bard")


def _killed(swapd: Swapd, body: dict[str, Any], at: int) -> Stream:
    """Read a stream whose worker is killed when so many events have come."""
    pid, stream = swapd.worker("bard")["pid"], Stream()
    alive = True
    for stream in follow(swapd, body):
        if alive and len(stream.texts) >= at:
            os.kill(pid, signal.SIGKILL)
            alive = False
    return stream


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as home,
        Swapd(Path(home), config({"bard": demo("bard")})) as swapd,
    ):
        outcome = kill_many(swapd, given.count, given.seed)
    print(outcome)
    for what in outcome.different:
        print(what, file=sys.stderr)
    return 1 if outcome.different else 0


if __name__ == "__main__":
    sys.exit(main())
