"""The number of threads follows what steps cost."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from workers.thread_pace import RETRY, SAMPLES, ThreadPace


def run(pace: ThreadPace, tokens: int, cost: Callable[[int], float], steps: int) -> list[int]:
    """The threads of so many steps that cost what `cost` says of each number."""
    chosen = []
    for _ in range(steps):
        threads = pace.choose(tokens)
        pace.observe(tokens, threads, cost(threads))
        chosen.append(threads)
    return chosen


@given(st.integers(2, 64), st.lists(st.floats(0.001, 1.0), min_size=3, max_size=3, unique=True))
def test_the_cheapest_is_found_and_kept(most: int, costs: list[float]) -> None:
    pace = ThreadPace(1, most)
    choices = sorted({1, most // 2, most})
    told = dict(zip(choices, costs, strict=False))
    chosen = run(pace, 4, told.__getitem__, 1000)
    best = min(told, key=told.__getitem__)
    assert chosen.count(best) >= 1000 - len(choices) * SAMPLES - 1000 // RETRY
    assert set(chosen) == set(choices)


def test_each_kind_of_step_is_judged_by_itself() -> None:
    pace = ThreadPace(2, 2)
    assert run(pace, 1, float, 50)[-1] == 1
    assert run(pace, 128, lambda threads: 1 / threads, 50)[-1] == 2


def test_it_notices_that_the_machine_has_changed() -> None:
    pace = ThreadPace(2, 2)
    assert run(pace, 1, float, 50)[-1] == 1
    assert run(pace, 1, lambda threads: 1 / threads, 2 * SAMPLES * RETRY)[-1] == 2


def test_one_thread_is_one_thread() -> None:
    assert set(run(ThreadPace(1, 1), 1, lambda _: 1.0, 300)) == {1}
    steady = ThreadPace(8, 6, steady=True)
    assert set(run(steady, 1, lambda _: 1.0, 300)) == {8}
    assert set(run(steady, 2, lambda _: 1.0, 300)) == {6}
