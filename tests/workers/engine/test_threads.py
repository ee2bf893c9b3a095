"""The number of threads follows the cost of steps, and measuring it costs little."""

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
    tuner: ThreadTuner, tokens: int, cost: Callable[[int], float], seconds: float
) -> list[tuple[int, float]]:
    """Run steps for `seconds`; return threads and seconds of each."""
    taken: list[tuple[int, float]] = []
    while seconds > 0:
        threads = tuner.choose(tokens)
        taken.append((threads, cost(threads)))
        tuner.observe(tokens, threads, cost(threads))
        seconds -= cost(threads)
    return taken


def lost(taken: list[tuple[int, float]], best: float) -> float:
    """Return the seconds that steps took longer than the best."""
    return sum(seconds - best for _, seconds in taken)


@settings(deadline=None)
@given(st.integers(2, 16), st.lists(st.floats(0.001, 0.01), min_size=3, max_size=3, unique=True))
def test_the_cheapest_number_is_found_and_used(most: int, costs: list[float]) -> None:
    tuner = ThreadTuner(1, most)
    choices = sorted({1, most // 2, most})
    costs_by_threads = dict(zip(choices, costs, strict=False))
    best = min(costs_by_threads.values())
    learning = run(tuner, 4, costs_by_threads.__getitem__, 2.0)
    assert lost(learning, best) <= SAMPLES * sum(costs_by_threads.values()) + 2 * CREDIT
    settled = run(tuner, 4, costs_by_threads.__getitem__, 20.0)
    assert lost(settled, best) <= 2 * SHARE * 20.0 + CREDIT
    assert [seconds for _, seconds in settled[-5:]].count(best) >= 3


def test_other_load_is_noticed_in_a_few_steps_and_so_is_its_end() -> None:
    tuner = ThreadTuner(2, 2)
    for tokens in (1, 6):
        calm = run(tuner, tokens, CALM.__getitem__, 3.0)
        assert calm[-1][0] == 2
        assert lost(calm, CALM[2]) < 0.02 * 3.0
    for tokens in (1, 6):
        crowded = run(tuner, tokens, CROWDED.__getitem__, 30.0)
        assert [threads for threads, _ in crowded[:8]].count(2) <= 4
        assert lost(crowded, CROWDED[1]) < 0.02 * 30.0 + CREDIT
    for tokens in (1, 6):
        free = run(tuner, tokens, CALM.__getitem__, 5.0)
        back = next(n for n, (threads, _) in enumerate(free) if threads == 2)
        assert sum(seconds for _, seconds in free[:back]) < 3.0
        assert [threads for threads, _ in free[back:]].count(2) > 0.9 * len(free[back:])


def test_one_slow_step_changes_nothing() -> None:
    tuner = ThreadTuner(2, 2)
    run(tuner, 1, CALM.__getitem__, 1.0)
    tuner.observe(1, 2, 0.5)
    taken = run(tuner, 1, CALM.__getitem__, 0.05)
    assert [threads for threads, _ in taken].count(2) >= len(taken) - 1


def test_each_kind_of_step_is_measured_by_itself() -> None:
    tuner = ThreadTuner(2, 2)
    for _ in range(3):
        assert run(tuner, 1, {1: 0.002, 2: 0.003}.__getitem__, 0.5)[-1][0] == 1
        assert run(tuner, 128, {1: 0.1, 2: 0.06}.__getitem__, 2.0)[-1][0] == 2


def test_a_trial_never_delays_a_step_too_long() -> None:
    tuner = ThreadTuner(16, 16)
    costs = {1: 8.0, 8: 0.7, 16: 0.5}
    taken = run(tuner, 128, costs.__getitem__, 100.0)
    assert {seconds for _, seconds in taken} <= {costs[8], costs[16]}
    assert costs[8] - costs[16] < LONGEST
    assert [threads for threads, _ in taken].count(8) <= 2 + 100 * SHARE_OF_FEWER / 0.2


def test_one_thread_is_one_thread() -> None:
    assert {threads for threads, _ in run(ThreadTuner(1, 1), 1, lambda _: 0.01, 3.0)} == {1}
    fixed = ThreadTuner(8, 6, fixed=True)
    assert {threads for threads, _ in run(fixed, 1, lambda _: 0.01, 3.0)} == {8}
    assert {threads for threads, _ in run(fixed, 2, lambda _: 0.01, 3.0)} == {6}
