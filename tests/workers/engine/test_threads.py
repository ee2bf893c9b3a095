"""The number of threads follows what steps cost, and finding out costs little."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.threads import CREDIT, LONGEST, SAMPLES, SHARE, SHARE_OF_FEWER, ThreadTuner

CALM = {1: 0.0033, 2: 0.0025}
"""Seconds of a step of one token on two cores, by threads."""
CROWDED = {1: 0.0050, 2: 0.0310}
"""The same beside another process that computes with two threads."""


def run(
    pace: ThreadTuner, tokens: int, cost: Callable[[int], float], seconds: float
) -> list[tuple[int, float]]:
    """(threads, seconds) of steps that cost what `cost` says of each number, for so long."""
    taken: list[tuple[int, float]] = []
    while seconds > 0:
        threads = pace.choose(tokens)
        taken.append((threads, cost(threads)))
        pace.observe(tokens, threads, cost(threads))
        seconds -= cost(threads)
    return taken


def lost(taken: list[tuple[int, float]], best: float) -> float:
    """Seconds that steps took longer than they must."""
    return sum(seconds - best for _, seconds in taken)


@settings(deadline=None)
@given(st.integers(2, 16), st.lists(st.floats(0.001, 0.01), min_size=3, max_size=3, unique=True))
def test_the_cheapest_is_found_and_kept(most: int, costs: list[float]) -> None:
    pace = ThreadTuner(1, most)
    choices = sorted({1, most // 2, most})
    told = dict(zip(choices, costs, strict=False))
    best = min(told.values())
    learning = run(pace, 4, told.__getitem__, 2.0)
    assert lost(learning, best) <= SAMPLES * sum(told.values()) + 2 * CREDIT
    settled = run(pace, 4, told.__getitem__, 20.0)
    assert lost(settled, best) <= 2 * SHARE * 20.0 + CREDIT
    assert [seconds for _, seconds in settled[-5:]].count(best) >= 3


def test_others_on_the_machine_are_noticed_in_a_few_steps_and_so_is_their_end() -> None:
    pace = ThreadTuner(2, 2)
    for tokens in (1, 6):
        calm = run(pace, tokens, CALM.__getitem__, 3.0)
        assert calm[-1][0] == 2
        assert lost(calm, CALM[2]) < 0.02 * 3.0
    for tokens in (1, 6):
        crowded = run(pace, tokens, CROWDED.__getitem__, 30.0)
        assert [threads for threads, _ in crowded[:8]].count(2) <= 4
        assert lost(crowded, CROWDED[1]) < 0.02 * 30.0 + CREDIT
    for tokens in (1, 6):
        free = run(pace, tokens, CALM.__getitem__, 5.0)
        back = next(n for n, (threads, _) in enumerate(free) if threads == 2)
        assert sum(seconds for _, seconds in free[:back]) < 3.0
        assert [threads for threads, _ in free[back:]].count(2) > 0.9 * len(free[back:])


def test_one_slow_step_is_an_accident() -> None:
    pace = ThreadTuner(2, 2)
    run(pace, 1, CALM.__getitem__, 1.0)
    pace.observe(1, 2, 0.5)
    taken = run(pace, 1, CALM.__getitem__, 0.05)
    assert [threads for threads, _ in taken].count(2) >= len(taken) - 1


def test_each_kind_of_step_is_judged_by_itself() -> None:
    pace = ThreadTuner(2, 2)
    for _ in range(3):
        assert run(pace, 1, {1: 0.002, 2: 0.003}.__getitem__, 0.5)[-1][0] == 1
        assert run(pace, 128, {1: 0.1, 2: 0.06}.__getitem__, 2.0)[-1][0] == 2


def test_a_trial_never_holds_up_everything() -> None:
    pace = ThreadTuner(16, 16)
    costs = {1: 8.0, 8: 0.7, 16: 0.5}
    taken = run(pace, 128, costs.__getitem__, 100.0)
    assert {seconds for _, seconds in taken} <= {costs[8], costs[16]}
    assert costs[8] - costs[16] < LONGEST
    assert [threads for threads, _ in taken].count(8) <= 2 + 100 * SHARE_OF_FEWER / 0.2


def test_one_thread_is_one_thread() -> None:
    assert {threads for threads, _ in run(ThreadTuner(1, 1), 1, lambda _: 0.01, 3.0)} == {1}
    steady = ThreadTuner(8, 6, steady=True)
    assert {threads for threads, _ in run(steady, 1, lambda _: 0.01, 3.0)} == {8}
    assert {threads for threads, _ in run(steady, 2, lambda _: 0.01, 3.0)} == {6}
