"""Groups, eviction policy and limits of all models together."""

from __future__ import annotations

import pytest

from swapd.config.errors import ConfigError
from swapd.domain.models import Group
from tests.config.reading import read

MODELS = "models:\n  a: {cmd: 'x ${PORT}'}\n  b: {cmd: 'x ${PORT}'}\n"


def test_groups_are_read_as_llama_swap_writes_them() -> None:
    text = (
        "groups:\n  small: {swap: false, exclusive: false, members: [a]}\n  big: {members: [b]}\n"
    )
    assert read(text + MODELS).catalog.limits.groups == (
        Group("small", frozenset("a"), swap=False, exclusive=False),
        Group("big", frozenset("b")),
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "groups:\n  g: {members: [a, c]}\n",
            "config.yaml:2: groups.g.members[1]: there is no model c",
        ),
        (
            "groups:\n  g: {members: [a]}\n  h: {members: [b, a]}\n",
            "config.yaml:3: groups.h.members[1]: a is in group g already",
        ),
        (
            "groups:\n  g: {member: [a]}\n",
            "config.yaml:2: groups.g.member: unknown key; did you mean members?",
        ),
        ("groups: [a]\n", "config.yaml:1: groups: must be a section"),
        ("groups:\n  g: a\n", "config.yaml:2: groups.g: must be a section with members"),
        (
            "policy: lrru\n",
            "config.yaml:1: policy: must be cost, lru, lru-ttl, lfu, ttl or no-evict",
        ),
        ("max_turn: -1\n", "config.yaml:1: max_turn: must be seconds, 0 or more"),
        ("max_queued: -1\n", "config.yaml:1: max_queued: must be a whole number, 0 or more"),
        ("max_per_tenant: -2\n", "config.yaml:1: max_per_tenant: must be a whole number"),
        ("max_queue: 0\n", "config.yaml:1: max_queue: must be a whole number, 1 or more"),
        ("max_resident: -1\n", "config.yaml:1: max_resident: must be a whole number, 0 or more"),
        (
            "memory: {budget: -1}\n",
            "config.yaml:1: memory.budget: must be a size",
        ),
        (
            "memory: {threshold: 101}\n",
            "config.yaml:1: memory.threshold: must be a percentage, 0 to 100",
        ),
        (
            "memory: {threshold: 80, critical: 80}\n",
            "config.yaml:1: memory.critical: must be above memory.threshold, 80, or 0 for never",
        ),
        (
            "memory: {psi_threshold: -1}\n",
            "config.yaml:1: memory.psi_threshold: must be a percentage, 0 to 100",
        ),
        (
            "groups:\n  g: {members: [a], together: true, swap: true}\n",
            "config.yaml:2: groups.g.swap: must be false for members that are loaded together",
        ),
        (
            "max_resident: 1\ngroups:\n  g: {members: [a, b], together: true}\n",
            "config.yaml:3: groups.g.together: 2 members can't be together: max_resident is 1",
        ),
        (
            "hooks: {on_startup: {preload: [a, c]}}\n",
            "config.yaml:1: hooks.on_startup.preload[1]: there is no model c",
        ),
        ("warm_standby: maybe\n", "config.yaml:1: warm_standby: must be true or false"),
    ],
)
def test_invalid_groups_and_limits_are_reported(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text + MODELS)
    assert str(caught.value).startswith(sentence)


def test_members_loaded_together_do_not_swap_each_other_out() -> None:
    (group,) = read(
        "groups: {g: {members: [a, b], together: true}}\n" + MODELS
    ).catalog.limits.groups
    assert group == Group("g", frozenset("ab"), swap=False, together=True)


def test_free_memory_is_required_if_memory_has_a_limit() -> None:
    for text, required in (
        ("", False),
        ("memory: {budget: 50%}\n", True),
        ("memory: {threshold: 75}\n", True),
    ):
        assert read(text + MODELS).catalog.limits.require_free_memory is required


def test_policy_turn_and_weight_are_read() -> None:
    loaded = read("policy: lfu\nmax_turn: 5\nmax_per_tenant: 3\nwarm_standby: false\n" + MODELS)
    limits = loaded.catalog.limits
    assert (limits.policy, limits.max_turn, limits.max_per_tenant) == ("lfu", 5.0, 3)
    assert loaded.settings.warm_standby is False
    spec = read("models:\n  a: {cmd: 'x ${PORT}', weight: 2.5, priority: -1}").catalog.models["a"]
    assert (spec.serving.weight, spec.serving.priority) == (2.5, -1)
