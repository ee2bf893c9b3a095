"""Groups, policies and the other terms of living together."""

from __future__ import annotations

import pytest

from swapd.config.problems import ConfigError
from swapd.words.catalog import Group
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
        ("max_wait: -1\n", "config.yaml:1: max_wait: must be seconds, 0 or more"),
        ("spare: maybe\n", "config.yaml:1: spare: must be true or false"),
    ],
)
def test_what_is_wrong_with_them_is_told(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text + MODELS)
    assert str(caught.value).startswith(sentence)


def test_terms_of_living_together() -> None:
    loaded = read("policy: lfu\nmax_wait: 5\nmax_per_tenant: 3\nspare: false\n" + MODELS)
    limits = loaded.catalog.limits
    assert (limits.policy, limits.max_wait, limits.max_per_tenant) == ("lfu", 5.0, 3)
    assert loaded.settings.spare is False
    spec = read("models:\n  a: {cmd: 'x ${PORT}', weight: 2.5, priority: -1}").catalog.models["a"]
    assert (spec.weight, spec.priority) == (2.5, -1)
