"""Guessing ahead: the same answers in fewer steps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.conftest import Start
from tests.workers.process import WorkerProcess
from tests.workers.test_prefix import SPEECH, cached, said
from workers.flags import FlagError, parse
from workers.speculation import LONGEST, SHORTEST, Followers

FLAGS = ("--parallel", "4", "--ctx-size", "4096", "--flash-attn", "off")
PROMPTS = [SPEECH * 2, "The king\n" * 12, "Good night, good night! " * 8, "My lord, my lord, my"]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 80, "ignore_eos": True}


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6), st.integers(1, 7))
def test_lookup_finds_what_followed_last(tokens: list[int], most: int, pace: int) -> None:
    followers = Followers()
    for end in range(0, len(tokens), pace):
        followers.find(tokens[:end], 1)
    expected: list[int] = []
    for length in range(LONGEST, SHORTEST - 1, -1):
        starts = [
            at
            for at in range(length, len(tokens))
            if len(tokens) > length and tokens[at - length : at] == tokens[-length:]
        ]
        if starts:
            expected = tokens[starts[-1] :][:most]
            break
    assert followers.find(tokens, most) == expected


@pytest.fixture(scope="module")
def plain(bard_gguf: Path) -> Any:
    """bard, guessing nothing."""
    worker = WorkerProcess(bard_gguf, *FLAGS)
    yield worker
    worker.kill()


@pytest.mark.parametrize("guesser", ["lookup", "draft"])
def test_answers_are_the_same_in_fewer_steps(
    start: Start, plain: WorkerProcess, bard_gguf: Path, guesser: str
) -> None:
    """The draft model is the model itself: every guess is right but for rounding."""
    flags = ["--spec-lookup"] if guesser == "lookup" else ["--model-draft", str(bard_gguf)]
    worker = start(bard_gguf, *FLAGS, *flags)
    wishes = [{"prompt": prompt, **GREEDY} for prompt in PROMPTS]
    wishes += [{"prompt": PROMPTS[0], "max_tokens": 60, "seed": 4, "temperature": 0.7}]
    wishes += [{**wishes[1], "repeat_penalty": 1.3}, {**wishes[1], "stop": ["king"]}]
    wishes += [{**wishes[1], "max_tokens": count} for count in (1, 2, 3)]
    same = 0
    for wish in wishes:
        expected = plain.post("/v1/completions", wish)
        answer = worker.post("/v1/completions", wish)
        same += said(answer) == said(expected)
        assert answer["choices"][0]["finish_reason"] == expected["choices"][0]["finish_reason"]
        assert answer["usage"]["completion_tokens"] <= wish["max_tokens"]
    assert same >= len(wishes) - 1, "but for what is rounded otherwise with more rows"
    guessed, right = (worker.metric(f"draft_tokens{name}_total") for name in ("", "_accepted"))
    assert right > 0
    assert worker.metric("n_decode_total") < plain.metric("n_decode_total")
    if guesser == "draft":
        assert right / guessed > 0.9
    timings = worker.post("/v1/completions", wishes[2])["timings"]
    assert timings["draft_n"] >= timings["draft_n_accepted"] > 0
    assert "draft_n" not in plain.post("/v1/completions", wishes[0])["timings"]


def test_guesses_in_company_and_what_is_kept_of_them(
    start: Start, plain: WorkerProcess, bard_gguf: Path
) -> None:
    worker = start(bard_gguf, *FLAGS, "--spec-lookup", "--draft-max", "16")
    wishes = [{"prompt": prompt, **GREEDY, "max_tokens": 40} for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda wish: worker.post("/v1/completions", wish), wishes))
    expected = [plain.text(**wish) for wish in wishes]
    assert sum(said(a) == e for a, e in zip(answers, expected, strict=True)) >= 3
    longer = {**wishes[1], "prompt": PROMPTS[1] + said(answers[1])}
    answer = worker.post("/v1/completions", longer)
    assert cached(answer) > answers[1]["usage"]["prompt_tokens"]
    assert said(answer) == plain.text(**{**longer, "cache_prompt": False})


def test_a_draft_model_with_another_vocabulary_is_refused(
    start: Start, bard_gguf: Path, tiny_gguf: Path
) -> None:
    worker = start(bard_gguf, "--model-draft", str(tiny_gguf))
    assert worker.first == {"error": "the draft model has another vocabulary than the model"}
    with pytest.raises(FlagError, match="choose one"):
        parse(["-m", "x", "--spec-lookup", "-md", "y"])
