"""Generated text: the same alone and in a batch, reproducible, cut at its limits."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.workers.conftest import Start
from tests.workers.process import WorkerProcess

PROMPTS = [
    "ROMEO:\nBut soft, what light",
    "To be, or not to be",
    "The king",
    "O, what a noble mind is here",
    "Enter HAMLET and",
    "My lord,",
    "Good night, good night! parting is such",
    "Friends, Romans, countrymen, lend me your ears; I come to bury",
]


def together(worker: WorkerProcess, bodies: list[dict[str, Any]]) -> list[str]:
    """Return the answers to requests made at the same time."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: worker.text(**body), bodies))


def same(texts: list[str], others: list[str]) -> int:
    """Count the equal pairs. Not all need be equal: see test_engine.py on arithmetic."""
    return sum(text == other for text, other in zip(texts, others, strict=True))


def test_each_answer_is_its_own_in_a_full_batch(bard: WorkerProcess) -> None:
    bodies = [{"prompt": prompt, "temperature": 0, "max_tokens": 16} for prompt in PROMPTS]
    alone = [bard.text(**body) for body in bodies]
    assert len(set(alone)) == len(alone)
    before = bard.metric("n_decode_total")
    assert same(together(bard, bodies), alone) >= 7
    assert bard.metric("n_decode_total") - before < 8 * 16, "they shared no step"


def test_options_of_other_requests_change_nothing(bard: WorkerProcess) -> None:
    """Greedy requests among others of every kind: the state of samplers, grammars and drafts is
    each request's own. One text may differ, by llama.cpp's rounding in a batch."""
    dice = random.Random(8)

    def anything(prompt: str) -> dict[str, Any]:
        return {
            "prompt": prompt * dice.randrange(1, 20),
            "max_tokens": dice.randrange(1, 40),
            "temperature": dice.choice([0, 0.3, 1.5]),
            "top_k": dice.choice([0, 1, 40]),
            "min_p": dice.choice([0, 0.2]),
            "mirostat": dice.choice([0, 0, 1, 2]),
            "repeat_penalty": dice.choice([1.0, 1.4]),
            "dry_multiplier": dice.choice([0, 0.8]),
            "xtc_probability": dice.choice([0, 0.5]),
            "logit_bias": {str(dice.randrange(300, 900)): 5},
            "seed": dice.randrange(1000),
            "n": dice.choice([1, 2]),
            "logprobs": dice.choice([None, 3]),
            "user": dice.choice(["a", "b"]),
            "cache_prompt": dice.choice([True, False]),
            **dice.choice([{}, {"grammar": 'root ::= [a-z ]+ "."'}, {"ignore_eos": True}]),
        }

    bodies = [{"prompt": prompt, "temperature": 0, "max_tokens": 24} for prompt in PROMPTS[:6]]
    alone = [bard.text(**body) for body in bodies]
    others = [anything(dice.choice(PROMPTS)) for _ in range(24)]
    mixed = [*others[:8], *bodies[:3], *others[8:16], *bodies[3:], *others[16:]]
    texts = dict(zip(map(id, mixed), together(bard, mixed), strict=True))
    assert same([texts[id(body)] for body in bodies], alone) >= 5


def test_a_seed_makes_sampling_reproducible(bard: WorkerProcess) -> None:
    body = {"prompt": "The king", "max_tokens": 32, "temperature": 1.5, "top_k": 0, "seed": 7}
    first = bard.text(**body)
    assert bard.text(**body) == first
    assert bard.text(**{**body, "seed": 8}) != first
    others = [{**body, "seed": seed} for seed in range(20, 27)]
    assert together(bard, [body, *others])[0] == first, "another request's draws changed it"


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        {"top_p": 0.0},
        {"min_p": 1.0},
        {"temperature": 1e-6},
        {"top_n_sigma": 1e-6},
    ],
    ids=str,
)
def test_each_sampler_can_leave_only_the_likeliest(
    bard: WorkerProcess, options: dict[str, float]
) -> None:
    body = {"prompt": "The king", "max_tokens": 24}
    greedy = bard.text(**body, temperature=0)
    assert bard.text(**{"temperature": 1.5, "seed": 3, **body, **options}) == greedy


@pytest.mark.parametrize(
    "options",
    [
        {"repeat_penalty": 1.8},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"typical_p": 0.2, "temperature": 1.0, "seed": 1},
    ],
    ids=str,
)
def test_each_penalty_changes_the_answer(bard: WorkerProcess, options: dict[str, float]) -> None:
    body = {"prompt": "The king", "max_tokens": 64, "temperature": 0}
    assert bard.text(**{**body, **options}) != bard.text(**body)


def test_logit_bias_forces_and_forbids(tiny: WorkerProcess) -> None:
    body = {"prompt": "go", "max_tokens": 8, "temperature": 0}
    assert tiny.text(**body, logit_bias={"65": 1000}) == "A" * 8
    assert "A" not in tiny.text(**body, logit_bias=[[65, 1000], [66, 2000], [65, False]])


def test_the_limits_of_an_answer(tiny: WorkerProcess, bard: WorkerProcess) -> None:
    for limit in (0, 1, 17):
        body = {"prompt": "go", "max_tokens": limit, "ignore_eos": True}
        answer = tiny.post("/v1/completions", body)
        assert answer["usage"]["completion_tokens"] == limit
        assert answer["choices"][0]["finish_reason"] == "length"
    context = bard.first["context"]
    prompt = [5] * (context - 6)
    usage = bard.post("/v1/completions", {"prompt": prompt, "ignore_eos": True})["usage"]
    assert usage == {
        "prompt_tokens": context - 6,
        "completion_tokens": 6,
        "total_tokens": context,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_a_prompt_that_is_too_long_is_rejected_with_both_numbers(bard: WorkerProcess) -> None:
    context = bard.first["context"]
    status, body = bard.ask("/v1/completions", {"prompt": [5] * (context + 1)})
    assert status == 400
    assert body["error"]["type"] == "exceed_context_size_error"
    assert body["error"]["n_prompt_tokens"] == context + 1
    assert body["error"]["n_ctx"] == context
    assert str(context) in body["error"]["message"]
    assert str(context + 1) in body["error"]["message"]


def test_characters_are_never_cut(tiny: WorkerProcess) -> None:
    """Only the three bytes of a rook can be drawn, mostly in an order that makes no character."""
    rook = "♜".encode()
    body = {
        "prompt": "go",
        "max_tokens": 300,
        "temperature": 50,
        "seed": 5,
        "logit_bias": {str(byte): 1000 for byte in {*rook}},
    }
    whole = tiny.text(**body)
    assert whole.count("♜") > 3
    assert all({*character.encode()} <= {*rook} for character in whole.replace("\ufffd", ""))
    with tiny.stream("/v1/completions", body) as chunks:
        parts = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(parts) == whole


@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_string_over_several_tokens_ends_the_text_before_it(
    bard: WorkerProcess, streamed: bool
) -> None:
    body: dict[str, Any] = {"prompt": "The king", "max_tokens": 60, "temperature": 0}
    whole = bard.text(**body)
    stop = whole[25:40]
    body["stop"] = ["never said", stop]
    expected = whole[: whole.find(stop)]
    if not streamed:
        answer = bard.post("/v1/completions", body)["choices"][0]
        assert (answer["text"], answer["finish_reason"]) == (expected, "stop")
        return
    with bard.stream("/v1/completions", body) as chunks:
        choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == expected
    assert choices[-1]["finish_reason"] == "stop"


def test_more_requests_than_slots_all_end(tiny: WorkerProcess) -> None:
    bodies = [{"prompt": f"go {n}", "max_tokens": 20, "temperature": 0} for n in range(12)]
    alone = [tiny.text(**body) for body in bodies]
    assert same(together(tiny, bodies), alone) >= 11


def test_a_cache_too_small_for_all_cuts_no_answer_short(start: Start, bard_gguf: Path) -> None:
    """Four answers of 400 tokens in 1,024 cells: some must wait, and continue later."""
    worker = start(bard_gguf, "--parallel", "4", "--ctx-size", "1024", "--flash-attn", "off")
    bodies = [
        {"prompt": prompt, "temperature": 0, "max_tokens": 400, "ignore_eos": True}
        for prompt in PROMPTS[:4]
    ]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda body: worker.post("/v1/completions", body), bodies))
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [400] * 4
    assert worker.metric("sequences_sent_back_total") > 0
    alone = worker.text(**{**bodies[3], "max_tokens": 12})
    assert answers[3]["choices"][0]["text"].startswith(alone)


def test_a_client_that_hangs_up_frees_its_slot(start: Start, tiny_gguf: Path) -> None:
    worker = start(tiny_gguf, "--parallel", "1", "--ctx-size", "32768")
    endless = {"prompt": "go", "ignore_eos": True, "max_tokens": 30_000}
    with worker.stream("/v1/completions", endless) as chunks:
        next(chunks)
        (slot,) = worker.ask("/slots")[1]
        assert slot["is_processing"]
        assert slot["next_token"][0]["n_decoded"] > 0
    worker.text(prompt="me too", max_tokens=2)
    assert worker.metric("tokens_predicted_total") < 25_000, "it went on without a client"
    waiting = worker.connect()
    with worker.stream("/v1/completions", endless) as chunks:
        next(chunks)
        waiting.request("POST", "/v1/completions", b'{"prompt": "I wait, then I leave"}')
        while worker.metric("requests_deferred") == 0:
            pass
        waiting.close()
        while worker.metric("requests_deferred") == 1:
            pass
        assert next(chunks), "the request in the slot should go on"
