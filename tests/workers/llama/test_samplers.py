"""The effect of each sampler, and their order."""

from __future__ import annotations

from typing import Any

import pytest

from tests.workers.process import WorkerProcess
from workers.settings import ORDER, SamplerNameError, Sampling, sampler_order

ASK: dict[str, Any] = {"prompt": "The king", "max_tokens": 24, "seed": 3}
HOT: dict[str, Any] = {**ASK, "temperature": 1.5}


@pytest.fixture(scope="module")
def greedy(bard: WorkerProcess) -> str:
    """The greedy answer."""
    return bard.text(**ASK, temperature=0)


@pytest.mark.parametrize(
    "options",
    [
        {"samplers": ["top_k", "temperature"], "top_k": 1, "xtc_probability": 1},
        {"samplers": "k", "top_k": 1},
        {"dynatemp_range": 1e-6, "temperature": 1e-6},
    ],
    ids=str,
)
def test_options_that_leave_only_the_likeliest(
    bard: WorkerProcess, greedy: str, options: dict[str, Any]
) -> None:
    assert bard.text(**{**HOT, **options}) == greedy


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0, "xtc_probability": 1, "xtc_threshold": 0.01},
        {"temperature": 0, "dry_multiplier": 9, "dry_allowed_length": 0, "dry_base": 3},
        {"samplers": ["temperature"], "top_k": 1},
        {"samplers": [], "top_k": 1},
        {"top_p": 0, "min_keep": 30},
        {"min_p": 1, "min_keep": 30},
        {"mirostat": 1},
        {"mirostat": 2},
        {"samplers": ["adaptive_p"], "adaptive_target": 0.1},
    ],
    ids=str,
)
def test_options_that_leave_more_than_the_likeliest(
    bard: WorkerProcess, greedy: str, options: dict[str, Any]
) -> None:
    body = {
        **HOT,
        **options,
        "cache_prompt": False,
    }  # both prompts are read the same way, so rounded the same way
    text = bard.text(**body)
    assert text != greedy
    assert bard.text(**body) == text, "the answer depends on more than the seed"


@pytest.mark.parametrize(
    "options",
    [
        {"dynatemp_range": 1.4},
        {"dynatemp_range": 1.4, "dynatemp_exponent": 4},
        {"mirostat": 2, "mirostat_tau": 1},
        {"mirostat": 1, "mirostat_tau": 1},
        {"xtc_probability": 1, "xtc_threshold": 0.02},
        {"samplers": [*reversed(ORDER)], "temperature": 3},
    ],
    ids=str,
)
def test_options_that_change_the_draw(bard: WorkerProcess, options: dict[str, Any]) -> None:
    temperature = options.get("temperature", HOT["temperature"])
    assert bard.text(**{**HOT, **options}) != bard.text(**{**HOT, "temperature": temperature})


def test_dry_ends_a_loop_and_leaves_breakers_alone(tiny: WorkerProcess) -> None:
    """Greedy, the random model falls into a loop at once."""
    ask: dict[str, Any] = {"prompt": "ab" * 30, "max_tokens": 120, "temperature": 0}
    only = {"logit_bias": {str(ord(letter)): 1000 for letter in "abc"}}
    loop = tiny.text(**ask, **only)
    dry = {"dry_multiplier": 1000, "dry_allowed_length": 3, "dry_base": 2}
    assert _longest_repeat(loop) > 40
    assert _longest_repeat(tiny.text(**ask, **only, **dry)) < 20
    broken = tiny.text(**ask, **only, **dry, dry_sequence_breakers=["a", "b", "c"])
    assert broken == loop
    assert tiny.text(**ask, **only, **dry, dry_penalty_last_n=0) == loop


def _longest_repeat(text: str) -> int:
    return max(
        length
        for length in range(len(text))
        for at in range(len(text) - length)
        if text.find(text[at : at + length], at + 1) >= 0
    )


def test_dry_sees_the_prompt(tiny: WorkerProcess) -> None:
    ask: dict[str, Any] = {"prompt": "xyz12 xyz12 xyz1", "max_tokens": 1, "temperature": 0}
    ask["logit_bias"] = {str(ord("2")): 50}
    assert tiny.text(**ask) == "2"
    assert tiny.text(**ask, dry_multiplier=100, dry_base=2) != "2"
    assert tiny.text(**ask, dry_multiplier=100, dry_base=2, dry_penalty_last_n=4) == "2"


def test_biases_by_text(bard: WorkerProcess, greedy: str) -> None:
    word = greedy.split()[2]
    never = bard.text(**ASK, temperature=0, logit_bias=[[f" {word}", False], [word, False]])
    assert word not in never.split()
    always = bard.text(**ASK, temperature=0, logit_bias=[["!", 1000]])
    assert set(always) == {"!"}


def test_sampler_orders_by_letters_and_other_names() -> None:
    assert sampler_order("edskypmxt") == ORDER
    assert sampler_order(["temp", "top-k", "nucleus", "typical"]) == (
        "temperature", "top_k", "top_p", "typ_p",
    )  # fmt: skip
    with pytest.raises(SamplerNameError, match="did you mean top_k"):
        sampler_order(["topk"])


def test_greedy_options() -> None:
    assert Sampling(temperature=0, top_k=1, min_p=0.5, mirostat=2).greedy
    assert not Sampling(temperature=0, dry_multiplier=1).greedy
    assert not Sampling(temperature=0, xtc_probability=0.5).greedy
    assert Sampling(temperature=0, dry_multiplier=1, samplers=("top_k",)).greedy
    assert Sampling(dry_multiplier=1).lookback(99) == 99
    assert Sampling(dry_multiplier=1, dry_penalty_last_n=7, repeat_penalty=2).lookback(99) == 64
