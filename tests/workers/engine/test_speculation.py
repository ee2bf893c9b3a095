"""Speculative decoding: the same answers in fewer steps, where that pays."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.workers.conftest import Start
from tests.workers.engine.test_engine import Bench, Reader
from tests.workers.engine.test_prefix_reuse import SPEECH, cached, text_of
from tests.workers.process import WorkerProcess
from workers.engine.sequence import Finished, Sequence
from workers.engine.speculation import (
    LONGEST,
    MAX_CREDIT,
    MAX_UNMEASURED,
    MIN_CREDIT,
    SHARE,
    SHORTEST,
    Followers,
    PromptLookup,
    Speculation,
    SpeculationBudget,
)
from workers.flags import FlagError, parse
from workers.llama.detokenizer import TextOutput
from workers.llama.sampler import Grammar, GrammarConstraint
from workers.settings import Sampling

FLAGS = ("--parallel", "4", "--ctx-size", "4096", "--flash-attn", "off")
PROMPTS = [SPEECH * 2, "The king\n" * 12, "Good night, good night! " * 8, "My lord, my lord, my"]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 80, "ignore_eos": True}


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6), st.integers(1, 7))
def test_lookup_finds_what_followed_last(tokens: list[int], most: int, stride: int) -> None:
    followers = Followers()
    for end in range(0, len(tokens), stride):
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


def text_and_tokens(answer: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the text of an answer and its tokens, if they are reported."""
    logprobs = answer["choices"][0]["logprobs"]
    return text_of(answer), logprobs["tokens"] if logprobs else []


@pytest.fixture(scope="module")
def plain(bard_gguf: Path) -> Any:
    """bard without speculation."""
    worker = WorkerProcess(bard_gguf, *FLAGS)
    yield worker
    worker.kill()


@pytest.mark.parametrize("drafter", ["lookup", "draft"])
def test_answers_are_the_same_with_drafts_and_without(
    start: Start, plain: WorkerProcess, bard_gguf: Path, drafter: str
) -> None:
    """The draft model is the model itself."""
    flags = ["--spec-lookup"] if drafter == "lookup" else ["--model-draft", str(bard_gguf)]
    worker = start(bard_gguf, *FLAGS, *flags)
    requests = [{"prompt": prompt, **GREEDY} for prompt in PROMPTS]
    requests += [{"prompt": PROMPTS[0], "max_tokens": 60, "seed": 4, "temperature": 0.7}]
    requests += [{**requests[1], "repeat_penalty": 1.3}, {**requests[1], "stop": ["king"]}]
    requests += [{**requests[1], "max_tokens": count} for count in (1, 2, 3)]
    requests += [{**requests[1], "grammar": 'root ::= ("The " [a-z]+ "\\n")+'}]
    requests += [{**requests[2], "json_schema": {"type": "array", "items": {"enum": ["a", 1]}}}]
    requests += [{**requests[2], "logprobs": 3}, {**requests[3], "stop": "lord", "logprobs": 1}]
    same = 0
    timings = []
    for request in requests:
        expected = plain.post("/v1/completions", request)
        answer = worker.post("/v1/completions", request)
        same += text_and_tokens(answer) == text_and_tokens(expected)
        timings.append(answer["timings"])
        assert "draft_n" not in expected["timings"]
        assert answer["choices"][0]["finish_reason"] == expected["choices"][0]["finish_reason"]
        assert answer["usage"]["completion_tokens"] <= request["max_tokens"]
    assert same >= len(requests) - 1, "but for rounding, which differs with more rows"
    drafted, accepted = (worker.metric(f"draft_tokens{name}_total") for name in ("", "_accepted"))
    assert drafted > 0, "their number depends on their gain"
    counts = [(one.get("draft_n", 0), one.get("draft_n_accepted", 0)) for one in timings]
    assert (sum(n for n, _ in counts), sum(n for _, n in counts)) == (drafted, accepted)
    assert all(count >= right for count, right in counts)


def test_drafts_in_a_batch_and_their_cached_tokens(
    start: Start, plain: WorkerProcess, bard_gguf: Path
) -> None:
    worker = start(bard_gguf, *FLAGS, "--spec-lookup", "--draft-max", "16")
    requests = [{"prompt": prompt, **GREEDY, "max_tokens": 40} for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda request: worker.post("/v1/completions", request), requests))
    expected = [plain.text(**request) for request in requests]
    assert sum(text_of(a) == e for a, e in zip(answers, expected, strict=True)) >= 3
    longer = {**requests[1], "prompt": PROMPTS[1] + text_of(answers[1])}
    answer = worker.post("/v1/completions", longer)
    assert cached(answer) > answers[1]["usage"]["prompt_tokens"]
    assert text_of(answer) == plain.text(**{**longer, "cache_prompt": False})


def test_a_draft_model_with_another_vocabulary_is_refused(
    start: Start, bard_gguf: Path, tiny_gguf: Path
) -> None:
    worker = start(bard_gguf, "--model-draft", str(tiny_gguf))
    assert worker.first == {"error": "the draft model has another vocabulary than the model"}
    with pytest.raises(FlagError, match="choose one"):
        parse(["-m", "x", "--spec-lookup", "-md", "y"])


async def answers(
    bench: Bench, requests: list[tuple[Sampling, GrammarConstraint | None]]
) -> list[list[int]]:
    """Return the answer to PROMPTS[2] with each of the options, one after the other."""
    prompt = bench.model.tokenize(PROMPTS[2], add_special=True, parse_special=False)
    found = []
    for number, (sampling, guide) in enumerate(requests):
        reader = Reader()
        sequence = Sequence(
            number, [*prompt], 120, sampling, TextOutput([]), reader, True, 0.0, constraint=guide
        )
        bench.engine.submit(sequence)
        await reader.ended.wait()
        assert isinstance(reader.end, Finished)
        found.append(sequence.tokens[len(prompt) :])
    return found


async def test_drafts_at_every_step_change_no_answer(
    bard_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts that do not pay too; the state of samplers is the same as without."""
    monkeypatch.setattr(SpeculationBudget, "allows", True)
    bench = Bench(bard_gguf, slots=2, cells=1024, draft_rows=16)
    form = 'root ::= ("Good night, " | "good night! " | [a-z ,.!]+ "\\n")+'
    grammar = Grammar.compile(form, bench.model, bench.log)

    def requests() -> list[tuple[Sampling, GrammarConstraint | None]]:
        return [
            (Sampling(temperature=0), None),
            (Sampling(temperature=0, repeat_penalty=1.02, repeat_last_n=9), None),
            (Sampling(temperature=0, dry_multiplier=0.1), None),
            (Sampling(temperature=0), GrammarConstraint(grammar)),
            (Sampling(temperature=0), GrammarConstraint(alternatives=2)),
            (Sampling(temperature=0.3, seed=5), GrammarConstraint(grammar, alternatives=1)),
            (Sampling(mirostat=2, seed=5, mirostat_tau=1.0), None),
        ]

    expected = await answers(bench, requests())
    steps = bench.engine.counters.steps
    bench.engine.runner.speculation = Speculation(PromptLookup(), 8)
    drafted = await answers(bench, requests())
    assert sum(a == b for a, b in zip(drafted, expected, strict=True)) >= 6, "but for rounding"
    assert bench.engine.counters.accepted_tokens > 50
    assert bench.engine.counters.steps < 2 * steps - 50, "fewer steps for the same"


class SlowOracle:
    """A drafter with the right answer, and a delay."""

    def __init__(self, answer: list[int], prompt: int) -> None:
        self.calls = 0
        self._answer, self._prompt = answer, prompt

    def propose(self, requests: list[tuple[Sequence, int]]) -> list[list[int]]:
        """As Drafter."""
        self.calls += 1
        threading.Event().wait(0.3)
        return [self._answer[len(one.tokens) - self._prompt :][:most] for one, most in requests]

    def forget(self, sequence: Sequence) -> None:
        """As Drafter."""


async def test_drafts_that_cost_more_than_they_gain_are_not_made(bard_gguf: Path) -> None:
    bench = Bench(bard_gguf, slots=2, cells=1024, draft_rows=16)
    requests: list[tuple[Sampling, GrammarConstraint | None]] = [(Sampling(temperature=0), None)]
    (expected,) = await answers(bench, requests)
    prompt = len(bench.model.tokenize(PROMPTS[2], add_special=True, parse_special=False))
    oracle = SlowOracle(expected, prompt)
    bench.engine.runner.speculation = Speculation(oracle, 8)
    (answer,) = await answers(bench, requests)
    assert answer == expected
    assert 0 < oracle.calls < 8, "of at least one for every ninth token"


@settings(max_examples=40)
@example(6.5, 6.0, [1.125, *[1.0] * 99])
@given(
    st.floats(0.5, 20),
    st.floats(0, 9),
    st.lists(st.floats(0.8, 1.2), min_size=100, max_size=100),
)
def test_drafts_lose_no_more_than_their_share(cost: float, gain: float, noise: list[float]) -> None:
    """A step with drafts costs as much as `cost` steps without, and does the work of `gain`."""
    budget = SpeculationBudget()
    lost, drafts = 0.0, 0
    for factor in noise * 30:
        if budget.allows:
            budget.observe_drafted(gain, cost * factor)
            lost += cost * factor - gain
            drafts += 1
        else:
            budget.observe_plain(factor)
    steps = 30 * len(noise)
    trials = 2 + SHARE * steps / -MIN_CREDIT
    unseen = 0.2 * gain * drafts
    """Error of a step without drafts that was measured a fifth too long."""
    assert lost <= 1.2 * MAX_CREDIT + 1.2 * cost * trials + 2 * SHARE * steps + unseen
    if gain > 1.5 * cost:
        assert drafts > steps - 1.1 * steps / MAX_UNMEASURED - 10
