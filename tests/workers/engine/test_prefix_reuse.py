"""Prefixes that are found in the cache: what they save, and that they change no answer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.workers.conftest import Start
from tests.workers.odd_gguf import write_recurrent_gguf, write_sliding_gguf
from tests.workers.process import WorkerProcess

SPEECH = (
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer "
    "The slings and arrows of outrageous fortune, Or to take arms against a sea of troubles "
)
BODY: dict[str, Any] = {"prompt": SPEECH, "max_tokens": 8, "temperature": 0, "ignore_eos": True}


def cached(answer: dict[str, Any]) -> int:
    """Prompt tokens that were not computed, as both dialects tell it."""
    usage, timings = answer["usage"], answer["timings"]
    count: int = usage["prompt_tokens_details"]["cached_tokens"]
    assert timings["cache_n"] == count
    assert timings["prompt_n"] == usage["prompt_tokens"] - count
    return count


def said(answer: dict[str, Any]) -> str:
    """The answer's text."""
    text: str = answer["choices"][0]["text"]
    return text


@pytest.fixture
def fresh(start: Start, bard_gguf: Path) -> WorkerProcess:
    """bard with an empty cache."""
    return start(bard_gguf, "--parallel", "4", "--ctx-size", "2048", "--flash-attn", "off")


def test_a_prompt_again_and_its_continuation_are_not_read_again(fresh: WorkerProcess) -> None:
    first = fresh.post("/v1/completions", BODY)
    size = first["usage"]["prompt_tokens"]
    assert cached(first) == 0
    again = fresh.post("/v1/completions", BODY)
    assert cached(again) == size - 1, "all but the last token, whose logits are needed"
    assert said(again) == said(first)
    longer = fresh.post("/v1/completions", {**BODY, "prompt": SPEECH + said(first) + " and"})
    assert cached(longer) >= size
    unshared = fresh.post("/v1/completions", {**BODY, "cache_prompt": False})
    assert cached(unshared) == 0
    assert said(unshared) == said(first)
    assert fresh.metric("prompt_tokens_reused_total") == cached(again) + cached(longer)


def test_a_running_request_shares_what_it_has(fresh: WorkerProcess) -> None:
    alone = said(fresh.post("/v1/completions", {**BODY, "cache_prompt": False}))
    long = {**BODY, "max_tokens": 700}
    with fresh.stream("/v1/completions", long) as chunks:
        next(chunks)
        beside = fresh.post("/v1/completions", BODY)
        assert next(chunks), "the other was to be running still"
    assert cached(beside) == beside["usage"]["prompt_tokens"] - 1
    assert said(beside) == alone


def test_many_conversations_with_one_beginning_share_its_cells(
    start: Start, bard_gguf: Path
) -> None:
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


def test_what_is_kept_goes_before_anybody_waits(fresh: WorkerProcess) -> None:
    """Each answer fills a third of the cells; the first must make room and is read again."""
    bodies = [{**BODY, "prompt": f"{n}: {SPEECH * 4}", "max_tokens": 400} for n in range(8)]
    first = said(fresh.post("/v1/completions", bodies[0]))
    for body in bodies[1:]:
        fresh.post("/v1/completions", body)
    again = fresh.post("/v1/completions", bodies[0])
    assert cached(again) == 0
    assert said(again) == first
    assert fresh.metric("sequences_sent_back_total") == 0


@pytest.mark.parametrize("write", [write_recurrent_gguf, write_sliding_gguf])
def test_memory_that_cannot_be_cut_is_gone_on_from_whole(
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
    assert (cached(first), cached(again)) == (0, 0), "its end can't be taken off"
    assert said(again) == said(first)
    text = worker.post("/tokenize", {"content": said(first)})["tokens"]
    longer = {**body, "prompt": [*range(32, 160), *text, 65, 66]}
    whole = worker.post("/v1/completions", {**longer, "cache_prompt": False})
    assert cached(whole) == 0
    bodies = [{**body, "prompt": [n, *range(32, 90)]} for n in range(97, 105)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda body: said(worker.post("/v1/completions", body)), bodies))
    alone = [said(worker.post("/v1/completions", {**b, "cache_prompt": False})) for b in bodies]
    assert sum(a == b for a, b in zip(alone, together, strict=True)) >= 7


def test_a_recurrent_conversation_goes_on_where_it_was(start: Start, tmp_path: Path) -> None:
    worker = start(write_recurrent_gguf(tmp_path / "mamba.gguf"), "-np", "2", "-c", "2048")
    body: dict[str, Any] = {
        "prompt": [*range(32, 90)],
        "max_tokens": 8,
        "temperature": 0,
        "logit_bias": {"65": 1000},
    }
    first = worker.post("/v1/completions", body)
    assert said(first) == "A" * 8
    longer = {**body, "prompt": [*range(32, 90), *[65] * 8, 66], "logit_bias": {}}
    whole = worker.post("/v1/completions", {**longer, "cache_prompt": False})
    gone_on = worker.post("/v1/completions", longer)
    assert cached(gone_on) == 58 + 7, "the last token of an answer is never decoded"
    assert said(gone_on) == said(whole)
