"""Which tokens go into the next step. Pure: numbers in, numbers out, no model.

Rules, in this order:

1. Every running sequence (one token pending) is in every step.
2. What is left of the step goes to prefill, in chunks: to the prompt with the least to go, the
   older first among equals, and on to the next. So a short prompt gets through while a long one
   is still being read, and of prompts that come together each is done as early as can be, where
   even shares would finish all of them at the end.
3. A quarter of that is the oldest one's in any case: no stream of short prompts holds it up.

Who is let in, and who goes back to the queue for want of cells, is the lane's and the cache's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

SMALLEST_CHUNK = 64
"""Below this a chunk costs almost as much as with this many tokens; on a CPU it may cost more:
llama.cpp's flash attention works in tiles from 64 rows on, and row by row below (heads of 32:
565 ms for 32 rows, 143 ms for 64, with 1,000 cells filled)."""

CPU_CHUNK = 128
"""Tokens that a CPU reads as fast, one by one counted, as 512 (60 MB model: 2,460/s to 2,230/s)."""


class Load(Protocol):
    """What the batcher sees of a sequence."""

    @property
    def cached(self) -> int:
        """How many of its tokens are in the cache."""

    @property
    def pending(self) -> int:
        """How many of them are not in the cache yet; at least 1."""


L = TypeVar("L", bound=Load)


def shares(admitted: Sequence[L], batch: int, chunk: int) -> list[tuple[L, int]]:
    """The step: (sequence, how many of its pending tokens), oldest first, none with 0.

    At most `batch` tokens in all, of which at most `chunk` for prefill.
    """
    running = sum(1 for load in admitted if load.pending == 1)
    room = min(batch - running, chunk)
    reading = [load for load in admitted if load.pending > 1]
    given = dict.fromkeys(reading, 0)
    if reading:
        given[reading[0]] = min(reading[0].pending, max(1, room // 4))
        room -= given[reading[0]]
    for load in sorted(reading, key=lambda load: load.pending):
        more = min(load.pending - given[load], room)
        given[load] += more
        room -= more
    step = [(load, given.get(load, 1)) for load in admitted]
    return [(load, count) for load, count in step if count > 0]


def parts(step: list[tuple[L, int]], apart_from: int) -> list[list[tuple[L, int]]]:
    """What of a step is computed at once: all of it, or the running ones and then the prompts.

    On a CPU, flash attention takes 64 rows at a time, and all of them look at every cell that any
    of them needs. So a few running sequences of many cells cost more beside a prompt than reading
    the weights once more does, from about as many cells on as the model is wide: `apart_from`.
    What is computed together begins with the prompts, so that their rows have tiles of their own.
    """
    running = [(load, count) for load, count in step if load.pending == 1]
    reading = [(load, count) for load, count in step if load.pending > 1]
    if running and reading and sum(load.cached for load, _ in running) >= apart_from:
        return [running, reading]
    return [reading + running]


class PrefillPace:
    """How many prefill tokens a step may take.

    Beside running sequences, prefill may lengthen their step by SLOWDOWN times, or by SHORTEST
    seconds where steps are so short that nobody would notice. In time and not in tokens, because
    what a chunk costs differs by a thousand times between machines and models; both costs are
    measured on the steps themselves. With nobody running, the chunk is a fixed number: a prompt
    that is read alone is read the same way every time, rounding included.
    """

    SLOWDOWN = 3.0
    SHORTEST = 0.02
    _WEIGHT = 0.2
    """Of a new measurement in the moving average."""

    def __init__(self, alone: int) -> None:
        """`alone`: the chunk while nobody is running."""
        self._alone = alone
        self._step: float | None = None
        """Seconds of a step without prefill."""
        self._token: float | None = None
        """Seconds a prefill token adds."""

    def chunk(self, running: int, batch: int) -> int:
        """Prefill tokens for the next step."""
        if running == 0:
            return min(batch, self._alone)
        if self._token is None:
            return min(batch, 2 * SMALLEST_CHUNK)
        allowance = max(self.SHORTEST, self.SLOWDOWN * (self._step or 0.0))
        most = min(batch, int(allowance / self._token))
        return max(SMALLEST_CHUNK, most // SMALLEST_CHUNK * SMALLEST_CHUNK)

    def observe(self, running: int, prefill: int, seconds: float) -> None:
        """A step with `running` single tokens and `prefill` others took `seconds`."""
        if prefill == 0:
            self._step = self._mean(self._step, seconds)
        elif prefill >= SMALLEST_CHUNK:
            base = (self._step or 0.0) if running else 0.0
            self._token = self._mean(self._token, max(seconds - base, 1e-7) / prefill)

    def _mean(self, before: float | None, value: float) -> float:
        return value if before is None else before + self._WEIGHT * (value - before)


def chunk_alone(n_ubatch: int, *, gpu: bool) -> int:
    """Prefill tokens for a step in which nobody is running.

    No more than llama.cpp computes at once anyway: a step can't be left, so a longer one would
    only keep newcomers and cancellations waiting. A CPU is at full speed with far fewer.
    """
    return n_ubatch if gpu else min(CPU_CHUNK, n_ubatch)
