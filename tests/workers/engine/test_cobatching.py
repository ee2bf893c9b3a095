"""Greedy answers with all other options at random: alone, and in one batch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.workers.engine.alike import differs_by_rounding
from tests.workers.engine.test_generation import PROMPTS
from tests.workers.process import ROOT, WorkerProcess

REQUESTS = 48
MAX_DIFFERENT = 3
"""Requests whose answer may differ in a batch by rounding."""
OPTIONS: list[dict[str, Any]] = [
    {"repeat_penalty": 1.3, "repeat_last_n": 20},
    {"frequency_penalty": 0.8, "presence_penalty": -0.3},
    {"dry_multiplier": 1.5, "dry_allowed_length": 1, "dry_sequence_breakers": ["\n"]},
    {"xtc_probability": 1.0, "xtc_threshold": 0.05, "seed": 3},
    {"typical_p": 0.5},
    {"top_k": 3, "top_p": 0.3, "min_p": 0.4, "top_n_sigma": 1.0, "min_keep": 2},
    {"mirostat": 2},
    {"samplers": ["temperature", "top_k", "penalties"], "repeat_penalty": 1.2},
    {"logit_bias": {"320": 2.5, "400": False}},
    {"stop": ["the", "\n\n"]},
    {"grammar": 'root ::= ([a-zA-Z ,.;]+ "\\n"){2,5}'},
    {"json_schema": {"type": "array", "items": {"enum": ["a", "king", 3]}, "maxItems": 9}},
    {"logprobs": 3},
    {"n": 2},
    {"echo": True},
    {"ignore_eos": True},
    {"cache_prompt": False},
    {"user": "a tenant"},
    {"model": "bard:alice"},
    {"lora": [{"id": 0, "scale": 0.5}]},
    {"stream": True},
    {"stream": True, "stream_options": {"include_usage": True}},
]
WEIGHED = (
    "repeat",
    "frequency",
    "presence",
    "dry",
    "xtc",
    "typical",
    "logit_bias",
    "grammar",
    "json",
)
"""Options with which not the likeliest token is taken."""


@pytest.fixture(scope="module")
def worker(bard_gguf: Path) -> Iterator[WorkerProcess]:
    """bard with an adapter, eight slots and prompt lookup."""
    flags = ("--parallel", "8", "--ctx-size", "8192", "--alias", "bard", "--flash-attn", "off")
    adapter = ("--adapter", f"alice={ROOT / 'demo' / 'alice-lora.gguf'}", "--spec-lookup")
    process = WorkerProcess(bard_gguf, *flags, *adapter)
    yield process
    process.kill()


def random_body(dice: random.Random) -> dict[str, Any]:
    """Return a greedy request with random options."""
    body: dict[str, Any] = {
        "prompt": dice.choice(PROMPTS) * dice.choice([1, 1, 8]),
        "max_tokens": dice.choice([1, 16, 40]),
        "temperature": 0,
    }
    for options in dice.sample(OPTIONS, dice.randrange(5)):
        body |= options
    if "grammar" in body:
        body.pop("json_schema", None)
    if "lora" in body:
        body.pop("model", None)
    if {"model", "lora"} & body.keys() and "logprobs" in body:
        body.pop("echo", None)  # a prompt can't be scored with an adapter
    return body


def choices_of(worker: WorkerProcess, body: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Return the text of each answer, its finish reason, and its tokens if reported."""
    if not body.get("stream"):
        choices = worker.post("/v1/completions", body)["choices"]
    else:
        with worker.stream("/v1/completions", body) as chunks:
            choices = [choice for chunk in chunks for choice in chunk["choices"]]
    found: list[tuple[str, str, list[str]]] = []
    for index in range(body.get("n", 1)):
        mine = [choice for choice in choices if choice["index"] == index]
        text = "".join(choice["text"] for choice in mine)
        tokens = [token for c in mine if c["logprobs"] for token in c["logprobs"]["tokens"]]
        found.append((text, mine[-1]["finish_reason"], tokens))
    return found


def test_each_answer_is_the_same_as_alone(worker: WorkerProcess) -> None:
    dice = random.Random(17)
    bodies = [random_body(dice) for _ in range(REQUESTS)]
    alone = [choices_of(worker, body) for body in bodies]
    steps = worker.metric("n_decode_total")
    with ThreadPoolExecutor(REQUESTS) as pool:
        together = list(pool.map(lambda body: choices_of(worker, body), bodies))
    assert worker.metric("n_busy_slots_per_decode") > 1
    assert worker.metric("n_decode_total") - steps < steps / 2, "they shared no steps"
    different = 0
    for body, one, other in zip(bodies, alone, together, strict=True):
        if one != other:
            different += 1
            weighed = any(name.startswith(WEIGHED) for name in body)
            plain = {k: v for k, v in body.items() if k not in {"n", "stream", "echo", "stop"}}
            if not (weighed or body.keys() & {"n", "stop", "echo"}):
                assert differs_by_rounding(worker, {**plain}, other[0][0]), body
    assert different <= MAX_DIFFERENT
