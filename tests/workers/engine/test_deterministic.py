"""Deterministic answers: independent of other requests, to the last bit of a logit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.workers.conftest import Start
from tests.workers.engine.test_generation import PROMPTS
from tests.workers.engine.test_prefix_reuse import SPEECH, cached, text_of
from tests.workers.process import WorkerProcess

ALONE: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True, "deterministic": True}


def logits(worker: WorkerProcess, prompt: str) -> list[float]:
    """Return the log-probabilities of an answer's tokens, as exactly as it reports them."""
    body = {**ALONE, "prompt": prompt, "logprobs": 1}
    logprobs: list[float] = worker.post("/v1/completions", body)["choices"][0]["logprobs"][
        "token_logprobs"
    ]
    return logprobs


def test_other_requests_change_nothing(start: Start, bard_gguf: Path) -> None:
    """With flash attention, where other answers depend on the batch."""
    worker = start(bard_gguf, "--parallel", "4", "--flash-attn", "on", "--spec-lookup")
    prompts = [*PROMPTS, SPEECH * 3]
    alone = [logits(worker, prompt) for prompt in prompts]
    with ThreadPoolExecutor(16) as pool:
        noise = [
            pool.submit(worker.text, prompt=f"{prompt} {n}", max_tokens=200, ignore_eos=True)
            for n, prompt in enumerate(prompts)
        ]
        batched = list(pool.map(lambda prompt: logits(worker, prompt), prompts))
        for other in noise:
            other.result()
    assert batched == alone


def test_the_flag_makes_every_answer_deterministic(start: Start, bard_gguf: Path) -> None:
    worker = start(bard_gguf, "--deterministic", "--flash-attn", "on")
    body = {"prompt": SPEECH, "max_tokens": 40, "temperature": 2.0}
    first = worker.post("/v1/completions", body)
    with ThreadPoolExecutor(4) as pool:
        others = list(pool.map(lambda _: worker.post("/v1/completions", body), range(4)))
    assert {text_of(other) for other in others} == {text_of(first)}
    assert all(cached(other) == 0 for other in others)


def test_a_client_that_disconnects_leaves_nothing_behind(start: Start, bard_gguf: Path) -> None:
    worker = start(bard_gguf)
    with worker.stream("/v1/completions", {**ALONE, "prompt": "go", "max_tokens": 900}) as chunks:
        next(chunks)
        assert worker.metric("requests_processing") == 1
    assert text_of(worker.post("/v1/completions", {**ALONE, "prompt": "The king"}))
    assert worker.metric("requests_processing") == 0
