"""How many threads a step is best computed with. Pure: it is told what steps took.

llama.cpp's threads meet at a barrier after every operation, some hundred times a step. They spin
there for a moment and then fall asleep (see `binding`). On a machine of one's own that is as fast
as it gets; where others compute, each barrier waits for whoever has no core just now, and a step
of several threads takes ten times as long as one of a single thread. And where operations are
short, the others cost more than they bring on any machine. So it is found out on the steps
themselves, and what finding out may cost is bounded:

- two steps in a row that took twice as long as usual are believed at once;
- another number of threads is tried for one step at a time, and what such trials take longer is at
  most a share of the time, with a little credit for the moments after a change; those that seem to
  pay off are repeated until it is certain.

How many threads a decode step should use: one a physical core, and no more than we may have.

llama.cpp's threads spin at barriers, so one thread too many is worse than one too few: the
others burn their cores waiting for it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from pathlib import Path
from statistics import median

SAMPLES = 5
"""Steps that are remembered of each kind and number of threads; their median counts."""
JUMP = 2.0
"""So many times as long, or as short: not the same conditions any more."""
SHARE, CREDIT = 0.012, 0.1
"""Of the time in steps, what trials of more threads may take longer; and seconds of that which may
be saved up."""
SHARE_OF_FEWER, CREDIT_OF_FEWER = 0.003, 0.03
"""The same for trials of fewer: when others come, the steps themselves tell."""
SOONEST = 0.1
"""Seconds in steps between two trials of a kind at least."""
LONGEST = 0.25
"""A trial that may hold everything up longer than this, in seconds, is not made."""


class ThreadTuner:
    """Chooses between a few numbers of threads, for steps of one token, of two, of three …"""

    def __init__(self, single: int, several: int, *, steady: bool = False) -> None:
        """As many threads as there may be for steps of one token, and of several; `steady`:
        always that many."""
        self._single = [single] if steady else _choices(single)
        self._several = [several] if steady else _choices(several)
        self._kinds: dict[int, _Kind] = {}
        self._usual = max(single, several)
        """What was best at the last step, of whatever kind."""
        self._spent = 0.0
        """Seconds in steps so far."""
        self._more = _Allowance(SHARE, CREDIT)
        self._fewer = _Allowance(SHARE_OF_FEWER, CREDIT_OF_FEWER)

    def choose(self, tokens: int) -> int:
        """Threads for a step of so many tokens."""
        number = _kind_of(tokens)
        kind = self._kinds.get(number)
        if kind is None:
            choices = self._single if tokens == 1 else self._several
            kind = self._kinds[number] = _Kind(choices, self._usual)
        more, fewer = self._more.ready(self._spent), self._fewer.ready(self._spent)
        return kind.trial(tokens, more, fewer) if more or fewer else kind.best

    def observe(self, tokens: int, threads: int, seconds: float) -> None:
        """Such a step took so long."""
        self._spent += seconds
        kind = self._kinds.get(_kind_of(tokens))
        if kind is None or len(kind.took) == 1:
            return
        best = kind.best
        expected = kind.cost(best)
        kind.add(threads, seconds / tokens)
        if threads != best:
            more = seconds - tokens * (expected or 0.0)
            (self._more if threads > best else self._fewer).pay(self._spent, more)
        if kind.best != best and kind.crowded(best):
            # What was learnt of the other kinds was learnt under other conditions.
            self._kinds = {_kind_of(tokens): kind}
        self._usual = kind.best


class _Allowance:
    """Seconds that trials may take longer: they come in with time, and are saved up to a bound."""

    def __init__(self, share: float, most: float) -> None:
        self._share = share
        self._most = self._left = most
        self._told = self._due = 0.0

    def ready(self, now: float) -> bool:
        """Whether a trial may be made."""
        self._left = min(self._most, self._left + self._share * (now - self._told))
        self._told = now
        return now >= self._due and self._left > 0

    def pay(self, now: float, more: float) -> None:
        """A trial took `more` seconds longer; if it was shorter, it may be repeated at once."""
        self._left -= max(0.0, more)
        self._due = now + SOONEST if more > 0 else now


def _choices(most: int) -> list[int]:
    return sorted({1, max(1, most // 2), most})


def _kind_of(tokens: int) -> int:
    """Steps of about the same number of tokens: the two leading bits of it are alike."""
    bits = tokens.bit_length()
    return 4 * bits + (tokens >> max(0, bits - 2))


class _Kind:
    """Steps of about the same number of tokens."""

    def __init__(self, choices: list[int], usual: int) -> None:
        self.took: dict[int, deque[float]] = {choice: deque(maxlen=SAMPLES) for choice in choices}
        """Seconds a token, by threads; what was used last comes last."""
        self.best = min(choices, key=lambda choice: abs(choice - usual))

    def cost(self, threads: int) -> float | None:
        """Seconds a token, as far as is known."""
        took = self.took[threads]
        return median(took) if took else None

    def add(self, threads: int, cost: float) -> None:
        """One more step; two that are far off what was before make it forgotten."""
        before = self.cost(threads)
        took = self.took[threads] = self.took.pop(threads)
        took.append(cost)
        last = list(took)[-2:]
        if before is not None and len(last) == 2 and _off(last, before):
            took.clear()
            took.extend(last)
        known = {threads: found for threads in self.took if (found := self.cost(threads))}
        self.best = min(known, key=known.__getitem__)

    def crowded(self, before: int) -> bool:
        """Whether the change from `before` threads is one of conditions, not of a nuance."""
        old, new = self.cost(before), self.cost(self.best)
        return old is not None and new is not None and old > JUMP * new

    def trial(self, tokens: int, more: bool, fewer: bool) -> int:
        """What of more or fewer threads to try: what seemed better the last time, what is unknown,
        the longest untried."""
        usual = self.cost(self.best)
        if usual is None:
            return self.best

        def rank(threads: int) -> tuple[bool, bool]:
            took = self.took[threads]
            return (not took or took[-1] >= usual, bool(took))

        others = [
            one
            for one in self.took
            if (more if one > self.best else fewer)
            and one != self.best
            and self._bearable(one, tokens)
        ]
        return min(others, key=rank, default=self.best)

    def _bearable(self, threads: int, tokens: int) -> bool:
        """Whether trying it can't hold up everything; more threads are tried in any case."""
        usual = self.cost(self.best) or 0.0
        likely = self.cost(threads) or usual * self.best / threads
        return threads > self.best or (likely - usual) * tokens <= LONGEST


def _off(costs: list[float], usual: float) -> bool:
    return min(costs) > JUMP * usual or max(costs) < usual / JUMP


def usable_cores() -> int:
    """Physical cores this process may run on, within the control group's quota; 1 at least."""
    if sys.platform == "darwin":
        return _darwin_cores()
    cpus = os.sched_getaffinity(0)
    siblings = {_read(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings") for n in cpus}
    cores = len(cpus) if None in siblings else len(siblings)
    return max(1, min(cores, _quota() or cores))


def _quota() -> int | None:
    """CPUs granted by cgroup v2's `cpu.max` ("<quota> <period>" in µs), rounded up."""
    quota, _, period = (_read("/sys/fs/cgroup/cpu.max") or "max").partition(" ")
    return None if quota == "max" else -(-int(quota) // int(period))


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None  # not this kind of kernel, or not shown inside a container


def _darwin_cores() -> int:
    """Performance cores; all physical ones on a machine without the distinction."""
    system = ctypes.CDLL(None)
    for name in (b"hw.perflevel0.physicalcpu", b"hw.physicalcpu"):
        count, size = ctypes.c_int32(0), ctypes.c_size_t(4)
        got = system.sysctlbyname(name, ctypes.byref(count), ctypes.byref(size), None, 0)
        if got == 0 and count.value > 0:
            return count.value
    return os.cpu_count() or 1
