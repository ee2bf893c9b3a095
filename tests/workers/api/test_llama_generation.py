"""llama-server's /completion, /infill and /rerank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workers.api.test_answers import FIM
from tests.workers.conftest import Start
from tests.workers.process import WorkerProcess
from tests.workers.random_gguf import write_random_gguf
from tests.workers.ranking_gguf import write_ranking_gguf

ASK: dict[str, Any] = {"prompt": "The king", "n_predict": 8, "temperature": 0}


def stream(worker: WorkerProcess, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the events of a stream, which has no [DONE] here."""
    connection = worker.connect()
    connection.request("POST", path, json.dumps({**body, "stream": True}))
    lines = connection.getresponse().read().decode().split("\n\n")
    connection.close()
    assert lines.pop() == ""
    assert not any("[DONE]" in line for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_completion_whole(bard: WorkerProcess) -> None:
    answer = bard.post("/completion", {**ASK, "return_tokens": True})
    assert answer["content"] == bard.text(prompt="The king", max_tokens=8, temperature=0)
    assert len(answer["tokens"]) == answer["tokens_predicted"] == 8
    assert bard.post("/detokenize", {"tokens": answer["tokens"]})["content"] == answer["content"]
    assert answer["stop"] is True
    assert answer["stop_type"] == "limit"
    assert answer["timings"]["predicted_n"] == 8
    assert (
        answer["tokens_evaluated"] == answer["timings"]["prompt_n"] + answer["timings"]["cache_n"]
    )
    assert answer["generation_settings"]["temperature"] == 0
    assert answer["prompt"].endswith("The king")
    assert bard.post("/completion", ASK)["tokens"] == []


def test_a_completion_streamed(bard: WorkerProcess) -> None:
    whole = bard.post("/completion", {**ASK, "return_tokens": True})
    events = stream(bard, "/completion", ASK)
    assert "".join(event["content"] for event in events) == whole["content"]
    assert [token for event in events for token in event["tokens"]] == whole["tokens"]
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["content"] == ""
    assert events[-1]["stop_type"] == "limit"


def test_why_it_stopped(bard: WorkerProcess, tiny: WorkerProcess) -> None:
    whole = bard.post("/completion", ASK)["content"]
    word = whole[9:13]
    stopped = bard.post("/completion", {**ASK, "stop": ["never", word]})
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", word)
    assert stopped["content"] == whole[: whole.find(word)]
    ended = tiny.post("/completion", {"prompt": "go", "grammar": 'root ::= "ab"'})
    assert (ended["stop_type"], ended["stopping_word"], ended["content"]) == ("eos", "", "ab")


def test_probabilities(bard: WorkerProcess) -> None:
    tokens = bard.post("/completion", {**ASK, "n_probs": 3})["completion_probabilities"]
    assert len(tokens) == 8
    assert all(len(one["top_logprobs"]) == 3 for one in tokens)
    assert all(one["id"] == one["top_logprobs"][0]["id"] for one in tokens)
    events = stream(bard, "/completion", {**ASK, "n_probs": 3})
    again = [one for event in events for one in event.get("completion_probabilities", [])]
    assert [one["id"] for one in again] == [one["id"] for one in tokens]


def test_prompts_of_all_kinds(tiny: WorkerProcess) -> None:
    ask = {"n_predict": 3, "temperature": 0}
    letters = [[104, 101, 121], ["h", 101, "y"], [[104, 101, 121]]]
    answers = [tiny.post("/completion", {**ask, "prompt": prompt}) for prompt in letters]
    assert [answer["prompt"] for answer in answers] == ["hey"] * 3
    assert len({answer["content"] for answer in answers}) == 1
    two = tiny.post("/completion", {**ask, "prompt": ["hey", [104, "ello"]]})
    assert [answer["prompt"] for answer in two] == ["hey", "hello"]
    assert [answer["index"] for answer in two] == [0, 1]


def test_without_a_limit_it_goes_to_the_end_of_the_context(start: Start, tmp_path: Path) -> None:
    worker = start(write_random_gguf(tmp_path / "m.gguf", context=64), "--ctx-size", "64")
    body = {"prompt": "go", "n_predict": -1, "ignore_eos": True}
    assert worker.post("/completion", body)["tokens_predicted"] == 62


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Start a random model with infill tokens."""
    path = write_random_gguf(tmp_path_factory.mktemp("fim") / "fim.gguf", control=FIM)
    worker = WorkerProcess(path)
    yield worker
    worker.kill()


def test_infill_puts_everything_in_its_place(filler: WorkerProcess) -> None:
    body = {
        "input_prefix": "def f(", "input_suffix": "): pass", "prompt": "a",
        "input_extra": [{"filename": "x.py", "text": "import y\n"}], "n_predict": 4,
    }  # fmt: skip
    assert filler.post("/infill", body)["prompt"] == (
        "<|repo_name|>myproject\n<|file_sep|>x.py\nimport y\n<|file_sep|>filename\n"
        "<|fim_prefix|>def f(a<|fim_suffix|>): pass<|fim_middle|>"
    )


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Start a reranker with random weights."""
    worker = WorkerProcess(write_ranking_gguf(tmp_path_factory.mktemp("rank") / "rank.gguf"))
    yield worker
    worker.kill()


DOCUMENTS = ["the sun", "a moon of Mars", "eggs and ham", "Phobos", "go " * 30]


def test_each_document_gets_a_score_and_the_best_is_first(ranker: WorkerProcess) -> None:
    body = {"query": "What turns around Mars?", "documents": DOCUMENTS}
    answer = ranker.post("/v1/rerank", body)
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 5
    assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2, 3, 4]
    assert answer["usage"]["prompt_tokens"] > 5 * len("What turns around Mars?")
    for result in answer["results"]:
        alone = {**body, "documents": [{"text": DOCUMENTS[result["index"]]}]}
        (one,) = ranker.post("/rerank", {**alone, "return_documents": True})["results"]
        assert one["relevance_score"] == pytest.approx(result["relevance_score"], abs=2e-3)
        assert one["document"] == {"text": DOCUMENTS[result["index"]]}
    assert ranker.post("/rerank", {**body, "top_n": 2})["results"] == answer["results"][:2]


def test_an_embedding_or_ranking_model_takes_more_than_a_ubatch(ranker: WorkerProcess) -> None:
    long = ranker.post("/v1/rerank", {"query": "a", "documents": ["b " * 800]})
    assert long["usage"]["prompt_tokens"] > 1600


def test_ranks_in_the_format_of_text_embeddings_inference(ranker: WorkerProcess) -> None:
    body = {"query": "Mars?", "texts": DOCUMENTS, "return_text": True}
    answer = ranker.post("/rerank", body)
    assert [set(one) for one in answer] == [{"index", "score", "text"}] * 5
    assert all(one["text"] == DOCUMENTS[one["index"]] for one in answer)


def test_requests_that_a_reranker_rejects(ranker: WorkerProcess) -> None:
    status, answer = ranker.ask("/v1/rerank", {"query": "a", "documents": []})
    assert (status, answer["error"]["param"]) == (400, "documents")
    status, answer = ranker.ask("/v1/rerank", {"query": "a", "documents": ["b " * 1100]})
    assert (status, answer["error"]["type"]) == (400, "exceed_context_size_error")
    assert "at most 2048 are computed at once" in answer["error"]["message"]
    status, answer = ranker.ask("/v1/embeddings", {"input": "a"})
    assert (status, answer["error"]["message"]) == (
        400,
        "This model is a reranker and computes no embeddings.",
    )


def test_ranking_by_a_model_without_a_head_fails_at_the_start(
    start: Start, tiny_gguf: Path
) -> None:
    worker = start(tiny_gguf, "--rerank")
    assert "no classification head" in worker.first["error"]


def test_a_long_text_repeated_for_many_is_rejected_at_the_first(
    ranker: WorkerProcess, filler: WorkerProcess
) -> None:
    """Check that ten million tokens are not computed before the rejection."""

    def ask(worker: WorkerProcess, path: str, body: dict[str, Any]) -> None:
        status, answer = worker.ask(path, body)
        assert (status, answer["error"]["type"]) == (400, "exceed_context_size_error")

    query = {"query": "a" * 20_000, "documents": ["b"] * 2000}
    assert ranker.grows_by(lambda: ask(ranker, "/v1/rerank", query)) < 100_000_000
    suffix = {"prompt": ["a"] * 256, "suffix": "b" * 150_000}
    assert filler.grows_by(lambda: ask(filler, "/v1/completions", suffix)) < 100_000_000
