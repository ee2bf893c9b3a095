"""Reuse of cached prefixes: the tokens it saves, and the same answers as without."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.workers.conftest import Start
from tests.workers.engine.alike import differs_by_rounding
from tests.workers.odd_gguf import write_recurrent_gguf, write_sliding_gguf
from tests.workers.process import WorkerProcess

SPEECH = (
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer "
    "The slings and arrows of outrageous fortune, Or to take arms against a sea of troubles "
)
BODY: dict[str, Any] = {"prompt": SPEECH, "max_tokens": 8, "temperature": 0, "ignore_eos": True}


def cached(answer: dict[str, Any]) -> int:
    """Return the prompt tokens that were not computed, as both dialects report them."""
    usage, timings = answer["usage"], answer["timings"]
    count: int = usage["prompt_tokens_details"]["cached_tokens"]
    assert timings["cache_n"] == count
    assert timings["prompt_n"] == usage["prompt_tokens"] - count
    return count


def text_of(answer: dict[str, Any]) -> str:
    """Return the text of an answer."""
    text: str = answer["choices"][0]["text"]
    return text


@pytest.fixture
def fresh(start: Start, bard_gguf: Path) -> WorkerProcess:
    """bard with an empty cache."""
    return start(bard_gguf, "--parallel", "4", "--ctx-size", "2048", "--flash-attn", "off")


def test_a_repeated_prompt_and_its_continuation_are_not_read_again(fresh: WorkerProcess) -> None:
    first = fresh.post("/v1/completions", BODY)
    size = first["usage"]["prompt_tokens"]
    assert cached(first) == 0
    again = fresh.post("/v1/completions", BODY)
    assert cached(again) == size - 1, "all but the last token, whose logits are needed"
    assert text_of(again) == text_of(first)
    longer = fresh.post("/v1/completions", {**BODY, "prompt": SPEECH + text_of(first) + " and"})
    assert cached(longer) >= size
    unshared = fresh.post("/v1/completions", {**BODY, "cache_prompt": False})
    assert cached(unshared) == 0
    assert text_of(unshared) == text_of(first)
    assert fresh.metric("prompt_tokens_reused_total") == cached(again) + cached(longer)


def test_a_running_request_shares_its_prefix(fresh: WorkerProcess) -> None:
    alone = text_of(fresh.post("/v1/completions", {**BODY, "cache_prompt": False}))
    long = {**BODY, "max_tokens": 700}
    with fresh.stream("/v1/completions", long) as chunks:
        next(chunks)
        beside = fresh.post("/v1/completions", BODY)
        assert next(chunks), "the other should still run"
    assert cached(beside) == beside["usage"]["prompt_tokens"] - 1
    assert text_of(beside) == alone


def test_many_requests_with_a_common_prefix_share_its_cells(start: Start, bard_gguf: Path) -> None:
    """Eight times 800 tokens do not fit into 2,048 cells; once 700 and eight times 100 do."""
    worker = start(bard_gguf, "--parallel", "8", "--ctx-size", "2048", "--flash-attn", "off")
    system = (SPEECH * 20)[:2400]
    bodies = [{**BODY, "prompt": f"{system} {n}", "max_tokens": 60} for n in range(8)]
    size = worker.post("/v1/completions", bodies[0])["usage"]["prompt_tokens"]
    assert 8 * size > 2048
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: worker.post("/v1/completions", body), bodies))
    assert all(cached(answer) > size * 0.9 for answer in answers)
    assert worker.metric("sequences_sent_back_total") == 0


def test_cached_sequences_are_evicted_before_a_request_waits(fresh: WorkerProcess) -> None:
    """Each answer fills a third of the cells; the first is evicted and read again.

    Its cells lie elsewhere then, and attention sums over them in another order: where two tokens
    are as good as equal, the answer may take the other one, depending on the processor.
    """
    bodies = [{**BODY, "prompt": f"{n}: {SPEECH * 4}", "max_tokens": 400} for n in range(8)]
    first = text_of(fresh.post("/v1/completions", bodies[0]))
    for body in bodies[1:]:
        fresh.post("/v1/completions", body)
    again = fresh.post("/v1/completions", bodies[0])
    assert cached(again) == 0
    assert fresh.metric("sequences_sent_back_total") == 0
    assert text_of(again) == first or differs_by_rounding(fresh, bodies[0], first)


@pytest.mark.parametrize("write", [write_recurrent_gguf, write_sliding_gguf])
def test_memory_that_cannot_be_truncated_is_continued_whole(
    start: Start, tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    worker = start(write(tmp_path / "odd.gguf"), "-np", "2", "-c", "2048", "-fa", "off")
    body: dict[str, Any] = {
        "prompt": [*range(32, 160)],
        "max_tokens": 8,
        "temperature": 0,
        "ignore_eos": True,
    }
    first = worker.post("/v1/completions", body)
    again = worker.post("/v1/completions", body)
    assert (cached(first), cached(again)) == (0, 0), "it can't be truncated"
    assert text_of(again) == text_of(first)
    text = worker.post("/tokenize", {"content": text_of(first)})["tokens"]
    longer = {**body, "prompt": [*range(32, 160), *text, 65, 66]}
    whole = worker.post("/v1/completions", {**longer, "cache_prompt": False})
    assert cached(whole) == 0
    bodies = [{**body, "prompt": [n, *range(32, 90)]} for n in range(97, 105)]
    with ThreadPoolExecutor(8) as pool:
        together = list(
            pool.map(lambda body: text_of(worker.post("/v1/completions", body)), bodies)
        )
    alone = [text_of(worker.post("/v1/completions", {**b, "cache_prompt": False})) for b in bodies]
    assert sum(a == b for a, b in zip(alone, together, strict=True)) >= 7


def test_a_recurrent_model_continues_a_whole_sequence(start: Start, tmp_path: Path) -> None:
    worker = start(write_recurrent_gguf(tmp_path / "mamba.gguf"), "-np", "2", "-c", "2048")
    body: dict[str, Any] = {
        "prompt": [*range(32, 90)],
        "max_tokens": 8,
        "temperature": 0,
        "logit_bias": {"65": 1000},
    }
    first = worker.post("/v1/completions", body)
    assert text_of(first) == "A" * 8
    longer = {**body, "prompt": [*range(32, 90), *[65] * 8, 66], "logit_bias": {}}
    whole = worker.post("/v1/completions", {**longer, "cache_prompt": False})
    continued = worker.post("/v1/completions", longer)
    assert cached(continued) == 58 + 7, "the last token of an answer is never decoded"
    assert text_of(continued) == text_of(whole)
