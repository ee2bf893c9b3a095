"""llama-server's endpoints, and the bytes of a stream."""

from __future__ import annotations

import json
from array import array
from base64 import b64decode
from pathlib import Path

from gguf import PoolingType

from tests.workers.conftest import Start
from tests.workers.process import WorkerProcess
from tests.workers.random_gguf import write_random_gguf


def test_a_stream_on_the_wire(bard: WorkerProcess) -> None:
    connection = bard.connect()
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "stream": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    response = connection.getresponse()
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert response.headers["X-Accel-Buffering"] == "no"
    lines = response.read().decode().split("\n\n")
    connection.close()
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (
        len(chunks) - 1
    )
    assert chunks[-1]["choices"][0]["finish_reason"] in {"stop", "length"}
    assert chunks[-1]["timings"]["predicted_n"] == 3
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_timings_are_in_a_whole_answer_too(bard: WorkerProcess) -> None:
    answer = bard.post("/v1/completions", {"prompt": "The king", "max_tokens": 4})
    timings = answer["timings"]
    assert timings["predicted_n"] == answer["usage"]["completion_tokens"] == 4
    assert timings["prompt_n"] == answer["usage"]["prompt_tokens"]
    assert timings["prompt_ms"] > 0 < timings["predicted_per_second"]


def test_tokens_and_back(bard: WorkerProcess, tiny: WorkerProcess) -> None:
    text = "To be, or not to be — ♜"
    tokens = bard.post("/tokenize", {"content": text})["tokens"]
    assert bard.post("/detokenize", {"tokens": tokens})["content"] == text
    pieces = tiny.post("/tokenize", {"content": "hé<|end|>", "with_pieces": True})["tokens"]
    assert [piece["piece"] for piece in pieces] == ["h", [0xC3], [0xA9], "<|end|>"]
    plain = tiny.post("/tokenize", {"content": "<|end|>", "parse_special": False})["tokens"]
    assert bytes(plain) == b"<|end|>"


def test_the_default_template_is_the_models(tiny: WorkerProcess) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    prompt = tiny.post("/apply-template", {"messages": messages})["prompt"]
    assert prompt == "<|start|>user\nHi<|end|>\n<|start|>assistant\n"
    assert tiny.ask("/props")[1]["chat_template"].startswith("{% for m in messages %}")


def test_a_template_in_the_flags_has_precedence(start: Start, tiny_gguf: Path) -> None:
    worker = start(
        tiny_gguf,
        "--chat-template",
        "{{ greeting }} {{ messages[0]['content'] | tojson }} {{ bos_token }}",
        "--chat-template-kwargs",
        '{"greeting": "Hello"}',
    )
    messages = [{"role": "user", "content": "é"}]
    assert worker.post("/apply-template", {"messages": messages})["prompt"] == 'Hello "é" <|bos|>'
    body = {"messages": messages, "chat_template_kwargs": {"greeting": "Bye"}}
    assert worker.post("/apply-template", body)["prompt"] == 'Bye "é" <|bos|>'


def test_props_and_slots(bard: WorkerProcess) -> None:
    props = bard.ask("/props")[1]
    assert props["total_slots"] == 8
    assert props["default_generation_settings"]["n_ctx"] == bard.first["context"]
    slots = bard.ask("/slots")[1]
    assert [slot["id"] for slot in slots] == list(range(8))
    assert not any(slot["is_processing"] for slot in slots)


def test_metrics_have_llama_servers_names_and_count(bard: WorkerProcess) -> None:
    names = ["prompt_tokens_total", "tokens_predicted_total", "n_decode_total"]
    before = [bard.metric(name) for name in names]
    usage = bard.post("/v1/completions", {"prompt": "The king is", "max_tokens": 5})["usage"]
    after = [bard.metric(name) for name in names]
    grown = [new - old for new, old in zip(after, before, strict=True)]
    assert grown == [usage["prompt_tokens"], 5, 5]
    assert bard.metric("requests_processing") == bard.metric("requests_deferred") == 0
    histograms = (
        *("time_to_first_token_seconds", "time_between_tokens_seconds", "queue_wait_seconds"),
        *("batch_tokens", "kv_save_seconds", "kv_restore_seconds", "adapter_load_seconds"),
    )
    counts = {name: bard.metric(f"{name}_count") for name in histograms}
    assert counts["time_to_first_token_seconds"] == counts["queue_wait_seconds"] > 0
    assert counts["batch_tokens"] <= bard.metric("n_decode_total")
    assert counts["time_between_tokens_seconds"] > 4
    assert counts["kv_save_seconds"] == counts["adapter_load_seconds"] == 0
    ends = {end: bard.metric(f'requests_total{{end="{end}"}}') for end in ("length", "failed")}
    assert ends["length"] > 0
    assert ends["failed"] == 0
    assert 0 < bard.metric("llama_seconds_total") < bard.metric("step_seconds_total")
    assert bard.metric("loop_seconds_total") > 0
    assert bard.metric("python_share") > 0


def test_embeddings_of_tokens_equal_those_of_text(bard: WorkerProcess) -> None:
    text = "The king is dead."
    tokens = bard.post("/tokenize", {"content": text, "add_special": True})["tokens"]
    answers = [
        bard.post("/v1/embeddings", {"input": given, "encoding_format": "float"})["data"]
        for given in (text, [text], tokens, [tokens])
    ]
    assert all(answer == answers[0] for answer in answers)
    many = bard.post("/v1/embeddings", {"input": [f"number {n}" for n in range(40)]})["data"]
    assert [item["index"] for item in many] == list(range(40))


def test_embeddings_in_base64_are_the_same_numbers(bard: WorkerProcess) -> None:
    body = {"input": ["The king", "is dead"]}
    numbers, texts = (
        [one["embedding"] for one in bard.post("/v1/embeddings", {**body, **extra})["data"]]
        for extra in ({}, {"encoding_format": "base64"})
    )
    assert [array("f", b64decode(text)) for text in texts] == [array("f", one) for one in numbers]


def test_embeddings_are_pooled_as_the_model_specifies(
    start: Start, tiny_gguf: Path, tmp_path: Path
) -> None:
    last = write_random_gguf(tmp_path / "m.gguf", context=32768, pooling=PoolingType.LAST)
    own, flagged, mean, otherwise = (
        start(model, *flags).post("/v1/embeddings", {"input": "The king"})["data"][0]["embedding"]
        for model, flags in (
            (last, ()),
            (tiny_gguf, ("--pooling", "last")),
            (tiny_gguf, ()),
            (last, ("--pooling", "mean")),
        )
    )
    assert own == flagged != mean == otherwise
