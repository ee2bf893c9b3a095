"""Several answers to a request, echoed prompts, and log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.workers.process import WorkerProcess
from tests.workers.random_gguf import write_random_gguf

ASK: dict[str, Any] = {"prompt": "The king", "max_tokens": 12, "seed": 5, "temperature": 1.2}
NEAR = 1e-3


@pytest.fixture
def client(bard: WorkerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{bard.port}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


def test_n_answers_differ_and_each_is_its_seeds(bard: WorkerProcess) -> None:
    answer = bard.post("/v1/completions", {**ASK, "n": 3})
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert texts == [bard.text(**{**ASK, "seed": seed}) for seed in (5, 6, 7)]
    assert len(set(texts)) == 3
    one = bard.post("/v1/completions", ASK)["usage"]
    assert answer["usage"]["prompt_tokens"] == one["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 36


def test_n_answers_read_a_long_prompt_once(bard: WorkerProcess) -> None:
    before = bard.metric("prompt_tokens_total")
    prompt = "Enter the ghost of the prince's father, and speaks. " * 8
    usage = bard.post("/v1/completions", {**ASK, "prompt": prompt, "n": 4})["usage"]
    read = bard.metric("prompt_tokens_total") - before
    assert read < 2 * usage["prompt_tokens"], "each read it for itself"


def test_streamed_answers_keep_to_their_index(bard: WorkerProcess, client: openai.OpenAI) -> None:
    texts = ["", "", "", ""]
    reasons: dict[int, str] = {}
    stream = client.completions.create(
        model="bard", prompt=["The king", "My lord"], n=2, max_tokens=9, seed=1, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    for chunk in stream:
        for choice in chunk.choices:
            assert choice.index not in reasons, "something came after the end"
            texts[choice.index] += choice.text
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
    assert reasons == dict.fromkeys(range(4), "length")
    assert chunk.usage is not None
    assert chunk.usage.completion_tokens == 36
    ask = {"max_tokens": 9}
    alone = [bard.text(prompt=p, seed=s, **ask) for p in ("The king", "My lord") for s in (1, 2)]
    assert sum(a == b for a, b in zip(texts, alone, strict=True)) >= 3


def test_chat_with_n(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "x", "n": 2, "max_tokens": 6, "seed": 2}
    ask["messages"] = [{"role": "user", "content": "Speak."}]
    whole = client.chat.completions.create(**ask)
    texts = ["", ""]
    for chunk in client.chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


@pytest.mark.parametrize("streamed", [False, True])
def test_logprobs_of_a_chat(client: openai.OpenAI, streamed: bool) -> None:
    ask: dict[str, Any] = {
        "model": "x", "messages": [{"role": "user", "content": "Speak."}], "max_tokens": 8,
        "temperature": 0, "logprobs": True, "top_logprobs": 3,
    }  # fmt: skip
    if streamed:
        tokens: list[Any] = []
        text = ""
        for chunk in client.chat.completions.create(**ask, stream=True):
            text += chunk.choices[0].delta.content or ""
            if chunk.choices[0].logprobs:
                tokens += chunk.choices[0].logprobs.content or []
    else:
        choice = client.chat.completions.create(**ask).choices[0]
        tokens, text = choice.logprobs.content, choice.message.content
    assert "".join(one.token for one in tokens) == text
    for one in tokens:
        assert bytes(one.bytes or b"").decode() == one.token
        assert len(one.top_logprobs) == 3
        assert one.top_logprobs[0].logprob == one.logprob, "greedy takes the likeliest"
        assert sum(math.exp(other.logprob) for other in one.top_logprobs) < 1 + NEAR
        assert sorted(one.top_logprobs, key=lambda other: -other.logprob) == one.top_logprobs


def test_logprobs_are_those_before_the_samplers(bard: WorkerProcess) -> None:
    ask = {"prompt": "The king", "max_tokens": 1, "logprobs": 5}
    plain = bard.post("/v1/completions", {**ask, "temperature": 0})["choices"][0]["logprobs"]
    biased = {"temperature": 3, "top_k": 1, "logit_bias": [["!", 1000]]}
    odd = bard.post("/v1/completions", {**ask, **biased})["choices"][0]["logprobs"]
    assert odd["tokens"] == ["!"]
    assert odd["top_logprobs"][0] == pytest.approx(plain["top_logprobs"][0], abs=NEAR)
    assert odd["token_logprobs"][0] < plain["token_logprobs"][0]
    none = bard.post("/v1/completions", {**ask, "logprobs": 0})["choices"][0]["logprobs"]
    assert none["top_logprobs"] == [{}]
    assert len(none["token_logprobs"]) == 1


def test_all_probabilities_add_up(tiny: WorkerProcess) -> None:
    """Check the 20 likeliest of 320: each of the rest is at most the least of them."""
    ask = {"prompt": "go", "max_tokens": 1, "logprobs": 20, "logit_bias": {"65": 1000}}
    (top,) = tiny.post("/v1/completions", ask)["choices"][0]["logprobs"]["top_logprobs"]
    listed = [math.exp(logprob) for logprob in top.values()]
    assert sum(listed) + min(listed) * 300 > 0.5
    assert sum(listed) < 1


def test_a_stop_string_removes_its_tokens_too(bard: WorkerProcess) -> None:
    ask = {"prompt": "The king", "max_tokens": 30, "temperature": 0, "logprobs": 0}
    whole = bard.text(**ask)
    stop = whole[20:26]
    for body in ({**ask, "stop": stop}, {**ask, "stop": stop, "n": 2}):
        choice = bard.post("/v1/completions", body)["choices"][0]
        offsets = choice["logprobs"]["text_offset"]
        text = "".join(choice["logprobs"]["tokens"])
        assert text.startswith(choice["text"])
        assert offsets[0] == 0
        assert offsets[-1] < len(choice["text"])


@pytest.mark.parametrize("streamed", [False, True])
def test_an_echo_with_logprobs_scores_the_prompt(bard: WorkerProcess, streamed: bool) -> None:
    """Score a text under the model, as evaluations do."""
    prompt = "The king is dead, long live the king. " * 5
    body = {"prompt": prompt, "echo": True, "max_tokens": 3, "logprobs": 1, "temperature": 0}
    if streamed:
        with bard.stream("/v1/completions", body) as chunks:
            choices = [chunk["choices"][0] for chunk in chunks]
        text = "".join(choice["text"] for choice in choices)
        parts = [choice["logprobs"] for choice in choices if choice["logprobs"]]
        logprobs = {key: [item for one in parts for item in one[key]] for key in parts[0]}
    else:
        choice = bard.post("/v1/completions", body)["choices"][0]
        text, logprobs = choice["text"], choice["logprobs"]
    assert text.startswith(prompt)
    assert "".join(logprobs["tokens"]) == text
    assert all(logprob < 0 for logprob in logprobs["token_logprobs"])
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert text[offset:].startswith(token)
    tokens = bard.post("/tokenize", {"content": prompt, "add_special": True})["tokens"]
    at = 20
    one = bard.post(
        "/v1/completions",
        {"prompt": tokens[:at], "max_tokens": 1, "logprobs": 1, "logit_bias": {tokens[at]: 1000}},
    )["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][at - 1] == pytest.approx(one["token_logprobs"][0], abs=0.05)
    assert len(logprobs["tokens"]) - 3 == len(tokens) - 1, "no beginning of text"


def test_the_first_token_of_a_text_has_no_probability(tiny: WorkerProcess) -> None:
    body = {"prompt": "go", "echo": True, "max_tokens": 1, "logprobs": 0, "logit_bias": {"65": 99}}
    logprobs = tiny.post("/v1/completions", body)["choices"][0]["logprobs"]
    assert [logprob is None for logprob in logprobs["token_logprobs"]] == [True, False, False]
    assert logprobs["top_logprobs"][0] is None


def test_an_echo_without_generated_text(bard: WorkerProcess) -> None:
    choice = bard.post("/v1/completions", {"prompt": "The king", "echo": True, "max_tokens": 0})
    assert choice["choices"][0]["text"] == "The king"
    assert choice["usage"]["completion_tokens"] == 0


FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>")


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Start a random model with infill tokens."""
    path: Path = tmp_path_factory.mktemp("fim") / "fim.gguf"
    worker = WorkerProcess(write_random_gguf(path, control=FIM))
    yield worker
    worker.kill()


def test_a_suffix_makes_an_infill_prompt(filler: WorkerProcess) -> None:
    body = {"prompt": "def f(", "suffix": "): pass", "max_tokens": 4, "temperature": 0}
    answer = filler.post("/v1/completions", body)
    marked = "<|repo_name|>myproject\n<|file_sep|>filename\n<|fim_prefix|>def f(<|fim_suffix|>"
    marked += "): pass<|fim_middle|>"
    tokens = filler.post("/tokenize", {"content": marked})["tokens"]
    assert answer["usage"]["prompt_tokens"] == len(tokens)
    expected = filler.text(prompt=tokens, max_tokens=4, temperature=0)
    assert answer["choices"][0]["text"] == expected
    echoed = filler.text(**body, echo=True)
    assert echoed == "def f(" + expected
