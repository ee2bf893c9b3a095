"""The rules of step planning, for any load."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from workers.engine import batch_scheduler


@dataclass(eq=False)
class Load:
    """A sequence in numbers."""

    length: int
    cached: int = 0

    @property
    def pending(self) -> int:
        """Pending tokens."""
        return self.length - self.cached


@st.composite
def loads(draw: st.DrawFn) -> list[Load]:
    """Up to eight sequences, somewhere between their first token and their last."""
    drawn = []
    for _ in range(draw(st.integers(1, 8))):
        length = draw(st.integers(1, 300))
        drawn.append(Load(length, draw(st.integers(0, length - 1))))
    return drawn


@given(loads(), st.integers(8, 400), st.integers(1, 400))
def test_a_step_keeps_its_budget_and_has_every_running_sequence(
    admitted: list[Load], batch: int, chunk: int
) -> None:
    step = batch_scheduler.plan_step(admitted, batch, chunk)
    running = [load for load in admitted if load.pending == 1]
    prefill = [count for load, count in step if load.pending > 1]
    assert all((load, 1) in step for load in running)
    assert all(0 < count <= load.pending for load, count in step)
    assert sum(prefill) <= chunk
    assert sum(count for _, count in step) <= batch
    wanted = sum(load.pending for load in admitted if load.pending > 1)
    assert sum(prefill) == min(wanted, chunk, batch - len(running)), "nothing is left unused"


@given(loads(), st.integers(8, 400), st.integers(1, 400))
def test_the_shortest_goes_first_and_the_oldest_gets_a_quarter(
    admitted: list[Load], batch: int, chunk: int
) -> None:
    step = dict(batch_scheduler.plan_step(admitted, batch, chunk))
    prefill = [load for load in admitted if load.pending > 1]
    if not prefill:
        return
    budget = min(batch - (len(admitted) - len(prefill)), chunk)
    oldest = prefill[0]
    assert step.get(oldest, 0) >= min(oldest.pending, max(1, budget // 4))
    for number, load in enumerate(prefill):
        for other in prefill[number + 1 :]:
            first, last = (other, load) if other.pending < load.pending else (load, other)
            if last is not oldest and step.get(last, 0):
                assert step.get(first, 0) == first.pending


def test_prompts_that_arrive_together_are_read_one_after_the_other() -> None:
    prompts = [Load(100) for _ in range(4)]
    done = []
    while any(prompt.pending for prompt in prompts):
        for prompt, count in batch_scheduler.plan_step([p for p in prompts if p.pending], 512, 50):
            prompt.cached += count
        done.append(sum(1 for prompt in prompts if not prompt.pending))
    assert done == [0, 1, 1, 2, 2, 3, 3, 4]


def test_a_short_prompt_gets_through_beside_a_long_one() -> None:
    long, short = Load(5000), Load(10)
    assert batch_scheduler.plan_step([long, short], 512, 512) == [(long, 502), (short, 10)]


@given(loads(), st.integers(0, 2000))
def test_a_step_is_computed_whole_with_prompts_first_or_in_two_parts(
    admitted: list[Load], split_from: int
) -> None:
    step = batch_scheduler.plan_step(admitted, 512, 100)
    found = batch_scheduler.split_step(step, split_from)
    assert sorted(id(load) for part in found for load, _ in part) == sorted(
        id(load) for load, _ in step
    )
    running = [load for load, _ in step if load.pending == 1]
    cells = sum(load.cached for load in running)
    mixed = 0 < len(running) < len(step)
    assert len(found) == (2 if mixed and cells >= split_from else 1)
    if len(found) == 2:
        assert [load for load, _ in found[0]] == running
    else:
        kinds = [load.pending == 1 for load, _ in found[0]]
        assert kinds == sorted(kinds)


def test_the_prefill_budget_follows_the_cost_of_steps() -> None:
    budget = batch_scheduler.PrefillBudget(idle_chunk=500)
    assert budget.chunk(running=0, batch=2048) == 500
    assert budget.chunk(running=0, batch=100) == 100
    budget.observe(running=0, prefill=1000, seconds=1.0)
    budget.observe(running=4, prefill=0, seconds=0.1)
    assert budget.chunk(running=4, batch=2048) == 256, "whole tiles of 300"
    for _ in range(50):
        budget.observe(running=4, prefill=300, seconds=0.1 + 3.0)
    assert budget.chunk(running=4, batch=2048) == batch_scheduler.SMALLEST_CHUNK
