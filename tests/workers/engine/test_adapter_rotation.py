"""Turns between adapter sets: nobody waits beyond the bound, and nobody changes without need."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.engine.batch_scheduler import TURN, AdapterRotation

SETS = st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True)


@given(st.lists(SETS, max_size=120))
def test_everybody_has_a_step_within_the_bound(history: list[list[int]]) -> None:
    turns: AdapterRotation[int] = AdapterRotation()
    waited: dict[int, int] = {}
    longest = 0
    for present in history:
        chosen = turns.next(present)
        assert chosen in present
        waited = {one: waited.get(one, -1) + 1 for one in present if one != chosen}
        assert all(steps < 5 * TURN for steps in waited.values())
        longest = max([longest, *(steps + 1 for steps in waited.values())])
        assert turns.longest == longest


@given(st.integers(1, 6))
def test_turns_go_round(count: int) -> None:
    turns: AdapterRotation[int] = AdapterRotation()
    steps = [turns.next(range(count)) for _ in range(3 * count * TURN)]
    assert steps == [one for one in range(count) for _ in range(TURN)] * 3


def test_who_is_alone_goes_on_without_end() -> None:
    turns: AdapterRotation[str] = AdapterRotation()
    assert [turns.next(["a"]) for _ in range(3 * TURN)] == ["a"] * 3 * TURN
    assert turns.next(["a", "b"]) in {"a", "b"}
    assert "b" in [turns.next(["a", "b"]) for _ in range(TURN)]


def test_a_newcomer_waits_behind_those_who_wait_already() -> None:
    turns: AdapterRotation[str] = AdapterRotation()
    assert turns.next(["a", "b"]) == "a"
    rest = [turns.next(["c", "b", "a"]) for _ in range(3 * TURN - 1)]
    assert rest == ["a"] * (TURN - 1) + ["b"] * TURN + ["c"] * TURN
