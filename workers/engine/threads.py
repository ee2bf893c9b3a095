"""The number of threads for a step: the usable cores, and a tuner that measures steps.

llama.cpp's threads meet at a barrier after every operation, some hundred times a step. They spin
there for a moment and then sleep (see `workers.llama.model`). On an otherwise idle machine that is
the fastest way; beside other load, each barrier waits for the thread without a core, and a step
with several threads takes ten times as long as one with a single thread. And where operations are
short, further threads cost more than they gain on any machine. So the best number is measured on
the steps themselves, and the cost of measuring is bounded:

- two steps in a row that took twice as long as usual are accepted as a change at once;
- another number of threads is tried for one step at a time. The time lost by such trials is at
  most a share of the time in steps, plus a little credit for the moments after a change; trials
  that seem to pay off are repeated until they are certain.

The most threads are one per physical core, within the quota of the control group: because threads
spin at barriers, one thread too many is worse than one too few.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from pathlib import Path
from statistics import median

SAMPLES = 5
"""Latest steps of each kind and number of threads, whose median counts."""
JUMP = 2.0
"""Ratio of two durations from which the conditions have changed."""
SHARE, CREDIT = 0.012, 0.1
"""Share of the time in steps that trials of more threads may lose; and the largest credit, in
seconds."""
SHARE_OF_FEWER, CREDIT_OF_FEWER = 0.003, 0.03
"""The same for trials of fewer threads: other load shows in the steps themselves."""
SOONEST = 0.1
"""Smallest time in steps between two trials of a kind, in seconds."""
LONGEST = 0.25
"""Longest delay that a trial may be expected to cause, in seconds."""


class ThreadTuner:
    """Chooses between a few numbers of threads, by the number of tokens of a step."""

    def __init__(self, single: int, several: int, *, fixed: bool = False) -> None:
        """Use at most `single` threads for steps of one token and `several` for others.

        If `fixed`, always exactly these.
        """
        self._single = [single] if fixed else _choices(single)
        self._several = [several] if fixed else _choices(several)
        self._kinds: dict[int, _Kind] = {}
        self._usual = max(single, several)
        """The best number of threads at the last step, of any kind."""
        self._spent = 0.0
        """Seconds in steps so far."""
        self._more = _Allowance(SHARE, CREDIT)
        self._fewer = _Allowance(SHARE_OF_FEWER, CREDIT_OF_FEWER)

    def choose(self, tokens: int) -> int:
        """Return the threads for a step of `tokens` tokens."""
        number = _kind_of(tokens)
        kind = self._kinds.get(number)
        if kind is None:
            choices = self._single if tokens == 1 else self._several
            kind = self._kinds[number] = _Kind(choices, self._usual)
        more, fewer = self._more.ready(self._spent), self._fewer.ready(self._spent)
        return kind.trial(tokens, more, fewer) if more or fewer else kind.best

    def observe(self, tokens: int, threads: int, seconds: float) -> None:
        """Record the seconds of a step."""
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
        if kind.best != best and kind.has_jumped(best):
            # The measurements of the other kinds were made under other conditions.
            self._kinds = {_kind_of(tokens): kind}
        self._usual = kind.best


class _Allowance:
    """The seconds that trials may lose: a share of the time in steps, up to a bound."""

    def __init__(self, share: float, most: float) -> None:
        self._share = share
        self._most = self._left = most
        self._updated = self._due = 0.0

    def ready(self, now: float) -> bool:
        """Return True if a trial may be made."""
        self._left = min(self._most, self._left + self._share * (now - self._updated))
        self._updated = now
        return now >= self._due and self._left > 0

    def pay(self, now: float, more: float) -> None:
        """Account for a trial that lost `more` seconds; one that gained may be repeated at once."""
        self._left -= max(0.0, more)
        self._due = now + SOONEST if more > 0 else now


def _choices(most: int) -> list[int]:
    return sorted({1, max(1, most // 2), most})


def _kind_of(tokens: int) -> int:
    """Return the class of a number of tokens: equal for numbers with the same two leading bits."""
    bits = tokens.bit_length()
    return 4 * bits + (tokens >> max(0, bits - 2))


class _Kind:
    """Steps of about the same number of tokens."""

    def __init__(self, choices: list[int], usual: int) -> None:
        self.took: dict[int, deque[float]] = {choice: deque(maxlen=SAMPLES) for choice in choices}
        """Seconds per token, by threads; the most recently used number comes last."""
        self.best = min(choices, key=lambda choice: abs(choice - usual))

    def cost(self, threads: int) -> float | None:
        """Return the seconds per token, or None without a measurement."""
        took = self.took[threads]
        return median(took) if took else None

    def add(self, threads: int, cost: float) -> None:
        """Record a step; two in a row that are far from the median replace all before them."""
        before = self.cost(threads)
        took = self.took[threads] = self.took.pop(threads)
        took.append(cost)
        last = list(took)[-2:]
        if before is not None and len(last) == 2 and _off(last, before):
            took.clear()
            took.extend(last)
        known = {threads: found for threads in self.took if (found := self.cost(threads))}
        self.best = min(known, key=known.__getitem__)

    def has_jumped(self, before: int) -> bool:
        """Return True if the change from `before` threads shows changed conditions."""
        old, new = self.cost(before), self.cost(self.best)
        return old is not None and new is not None and old > JUMP * new

    def trial(self, tokens: int, more: bool, fewer: bool) -> int:
        """Return the number of threads to try, of more or fewer ones.

        In this order: one that was better the last time, one without a measurement, the least
        recently tried.
        """
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
        """Return True if a trial can't delay the step too much; one of more threads never does."""
        usual = self.cost(self.best) or 0.0
        likely = self.cost(threads) or usual * self.best / threads
        return threads > self.best or (likely - usual) * tokens <= LONGEST


def _off(costs: list[float], usual: float) -> bool:
    return min(costs) > JUMP * usual or max(costs) < usual / JUMP


def usable_cores() -> int:
    """Return the physical cores of this process, within the control group's quota; at least 1."""
    if sys.platform == "darwin":
        return _darwin_cores()
    cpus = os.sched_getaffinity(0)
    siblings = {_read(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings") for n in cpus}
    cores = len(cpus) if None in siblings else len(siblings)
    return max(1, min(cores, _quota() or cores))


def _quota() -> int | None:
    """Return the CPUs of cgroup v2's `cpu.max` ("<quota> <period>" in µs), rounded up, or None."""
    quota, _, period = (_read("/sys/fs/cgroup/cpu.max") or "max").partition(" ")
    return None if quota == "max" else -(-int(quota) // int(period))


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None  # not this kind of kernel, or not shown inside a container


def _darwin_cores() -> int:
    """Return the performance cores; all physical ones on a machine without the distinction."""
    system = ctypes.CDLL(None)
    for name in (b"hw.perflevel0.physicalcpu", b"hw.physicalcpu"):
        count, size = ctypes.c_int32(0), ctypes.c_size_t(4)
        got = system.sysctlbyname(name, ctypes.byref(count), ctypes.byref(size), None, 0)
        if got == 0 and count.value > 0:
            return count.value
    return os.cpu_count() or 1
