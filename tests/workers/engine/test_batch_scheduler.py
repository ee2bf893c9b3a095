"""The batcher's rules, for any load."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from workers.engine import batch_scheduler


@dataclass(eq=False)
class Work:
    """A sequence in numbers."""

    length: int
    cached: int = 0

    @property
    def pending(self) -> int:
        """Tokens to go."""
        return self.length - self.cached


@st.composite
def works(draw: st.DrawFn) -> list[Work]:
    """Up to eight sequences, somewhere between their first token and their last."""
    drawn = []
    for _ in range(draw(st.integers(1, 8))):
        length = draw(st.integers(1, 300))
        drawn.append(Work(length, draw(st.integers(0, length - 1))))
    return drawn


@given(works(), st.integers(8, 400), st.integers(1, 400))
def test_a_step_keeps_its_budget_and_leaves_nobody_out(
    admitted: list[Work], batch: int, chunk: int
) -> None:
    step = batch_scheduler.plan_step(admitted, batch, chunk)
    running = [work for work in admitted if work.pending == 1]
    prefill = [count for work, count in step if work.pending > 1]
    assert all((work, 1) in step for work in running)
    assert all(0 < count <= work.pending for work, count in step)
    assert sum(prefill) <= chunk
    assert sum(count for _, count in step) <= batch
    wanted = sum(work.pending for work in admitted if work.pending > 1)
    assert sum(prefill) == min(wanted, chunk, batch - len(running)), "nothing is left unused"


@given(works(), st.integers(8, 400), st.integers(1, 400))
def test_the_shortest_goes_first_and_the_oldest_gets_a_quarter(
    admitted: list[Work], batch: int, chunk: int
) -> None:
    step = dict(batch_scheduler.plan_step(admitted, batch, chunk))
    prefill = [work for work in admitted if work.pending > 1]
    if not prefill:
        return
    room = min(batch - (len(admitted) - len(prefill)), chunk)
    oldest = prefill[0]
    assert step.get(oldest, 0) >= min(oldest.pending, max(1, room // 4))
    for number, work in enumerate(prefill):
        for other in prefill[number + 1 :]:
            first, last = (other, work) if other.pending < work.pending else (work, other)
            if last is not oldest and step.get(last, 0):
                assert step.get(first, 0) == first.pending


def test_prompts_that_come_together_are_read_one_after_the_other() -> None:
    prompts = [Work(100) for _ in range(4)]
    done = []
    while any(prompt.pending for prompt in prompts):
        for prompt, count in batch_scheduler.plan_step([p for p in prompts if p.pending], 512, 50):
            prompt.cached += count
        done.append(sum(1 for prompt in prompts if not prompt.pending))
    assert done == [0, 1, 1, 2, 2, 3, 3, 4]


def test_a_short_prompt_gets_through_beside_a_long_one() -> None:
    long, short = Work(5000), Work(10)
    assert batch_scheduler.plan_step([long, short], 512, 512) == [(long, 502), (short, 10)]


@given(works(), st.integers(0, 2000))
def test_a_step_is_computed_whole_and_prompts_first_or_apart(
    admitted: list[Work], apart_from: int
) -> None:
    step = batch_scheduler.plan_step(admitted, 512, 100)
    found = batch_scheduler.split_step(step, apart_from)
    assert sorted(id(work) for part in found for work, _ in part) == sorted(
        id(work) for work, _ in step
    )
    running = [work for work, _ in step if work.pending == 1]
    cells = sum(work.cached for work in running)
    mixed = 0 < len(running) < len(step)
    assert len(found) == (2 if mixed and cells >= apart_from else 1)
    if len(found) == 2:
        assert [work for work, _ in found[0]] == running
    else:
        kinds = [work.pending == 1 for work, _ in found[0]]
        assert kinds == sorted(kinds)


def test_the_pace_follows_what_steps_cost() -> None:
    pace = batch_scheduler.PrefillBudget(alone=500)
    assert pace.chunk(running=0, batch=2048) == 500
    assert pace.chunk(running=0, batch=100) == 100
    pace.observe(running=0, prefill=1000, seconds=1.0)
    pace.observe(running=4, prefill=0, seconds=0.1)
    assert pace.chunk(running=4, batch=2048) == 256, "whole tiles of 300"
    for _ in range(50):
        pace.observe(running=4, prefill=300, seconds=0.1 + 3.0)
    assert pace.chunk(running=4, batch=2048) == batch_scheduler.SMALLEST_CHUNK
