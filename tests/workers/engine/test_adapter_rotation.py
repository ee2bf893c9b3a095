"""Adapter rotation: bounded waits, and no change of adapters without need."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.engine.batch_scheduler import ROTATION_STEPS, AdapterRotation

SETS = st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True)


@given(st.lists(SETS, max_size=120))
def test_every_set_has_a_step_within_the_bound(history: list[list[int]]) -> None:
    rotation: AdapterRotation[int] = AdapterRotation()
    waited: dict[int, int] = {}
    longest = 0
    for present in history:
        chosen = rotation.next(present)
        assert chosen in present
        waited = {one: waited.get(one, -1) + 1 for one in present if one != chosen}
        assert all(steps < 5 * ROTATION_STEPS for steps in waited.values())
        longest = max([longest, *(steps + 1 for steps in waited.values())])
        assert rotation.longest == longest


@given(st.integers(1, 6))
def test_sets_take_turns(count: int) -> None:
    rotation: AdapterRotation[int] = AdapterRotation()
    steps = [rotation.next(range(count)) for _ in range(3 * count * ROTATION_STEPS)]
    assert steps == [one for one in range(count) for _ in range(ROTATION_STEPS)] * 3


def test_a_single_set_keeps_its_turn() -> None:
    rotation: AdapterRotation[str] = AdapterRotation()
    assert [rotation.next(["a"]) for _ in range(3 * ROTATION_STEPS)] == ["a"] * 3 * ROTATION_STEPS
    assert rotation.next(["a", "b"]) in {"a", "b"}
    assert "b" in [rotation.next(["a", "b"]) for _ in range(ROTATION_STEPS)]


def test_a_new_set_waits_behind_those_already_waiting() -> None:
    rotation: AdapterRotation[str] = AdapterRotation()
    assert rotation.next(["a", "b"]) == "a"
    rest = [rotation.next(["c", "b", "a"]) for _ in range(3 * ROTATION_STEPS - 1)]
    assert rest == ["a"] * (ROTATION_STEPS - 1) + ["b"] * ROTATION_STEPS + ["c"] * ROTATION_STEPS
