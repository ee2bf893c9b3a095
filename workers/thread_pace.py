"""How many threads a step is best computed with. Pure: it is told what steps took.

llama.cpp's threads meet at a barrier after every operation, some hundred times a step, and wait
there asleep (see `binding`). Where an operation is short, waking the others takes longer than
what they would compute: the 60 MB model makes a step of one token in 3.0 ms on one thread and in
4.5 ms on two, and one of eight tokens in 42 and in 37 ms, on two cores with other work on them. It
depends on the model, the machine and its other work, so it is found out on the steps themselves.
"""

from __future__ import annotations

from collections import deque
from statistics import median

SAMPLES = 7
"""Steps that are remembered of each kind; the median of them is what counts."""
RETRY = 100
"""Steps of a kind after which one is computed otherwise, to see whether that is better by now."""


class ThreadPace:
    """Chooses between a few numbers of threads, for steps of one token, of two, of four …"""

    def __init__(self, single: int, several: int, *, steady: bool = False) -> None:
        """As many threads as there may be for steps of one token, and of several; `steady`:
        always that many."""
        self._single = [single] if steady else _choices(single)
        self._several = [several] if steady else _choices(several)
        self._kinds: dict[int, _Kind] = {}

    def choose(self, tokens: int) -> int:
        """Threads for a step of so many tokens."""
        kind = tokens.bit_length()
        if kind not in self._kinds:
            self._kinds[kind] = _Kind(self._single if tokens == 1 else self._several)
        return self._kinds[kind].choose()

    def observe(self, tokens: int, threads: int, seconds: float) -> None:
        """Such a step took so long."""
        kind = self._kinds.get(tokens.bit_length())
        if kind is not None:
            kind.took[threads].append(seconds / tokens)


def _choices(most: int) -> list[int]:
    return sorted({1, max(1, most // 2), most}, reverse=True)


class _Kind:
    """Steps of about the same number of tokens."""

    def __init__(self, choices: list[int]) -> None:
        self.took: dict[int, deque[float]] = {choice: deque(maxlen=SAMPLES) for choice in choices}
        """Seconds a token, by threads."""
        self._steps = 0

    def choose(self) -> int:
        self._steps += 1
        rare = min(self.took, key=lambda threads: len(self.took[threads]))
        if len(self.took[rare]) < SAMPLES:
            return rare
        medians = {threads: median(took) for threads, took in self.took.items()}
        ranked = sorted(medians, key=lambda threads: medians[threads])
        if self._steps % RETRY == 0 and len(ranked) > 1:
            return ranked[1 + self._steps // RETRY % (len(ranked) - 1)]
        return ranked[0]
