"""OpenAI's official client, unchanged."""

from __future__ import annotations

import math
from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.workers.process import WorkerProcess


@pytest.fixture
def client(bard: WorkerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{bard.port}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


def dot(one: list[float], other: list[float]) -> float:
    """Return the cosine of two vectors of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="bard", messages=[{"role": "user", "content": "Speak."}], max_completion_tokens=9
    )
    assert answer.object == "chat.completion"
    assert answer.model == "bard"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 9
    assert answer.usage.total_tokens - answer.usage.prompt_tokens == answer.usage.completion_tokens


def test_a_streamed_chat_equals_a_whole_one(client: openai.OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": "You are a poet."},
        {"role": "user", "content": [{"type": "text", "text": "Speak."}]},
    ]
    whole = client.chat.completions.create(
        model="any", messages=messages, max_tokens=20, temperature=0
    )
    chunks = list(
        client.chat.completions.create(
            model="any",
            messages=messages,
            max_tokens=20,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason in {"stop", "length"}
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_completions(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="x", prompt="The king", max_tokens=8, temperature=0)
    parts = client.completions.create(
        model="x", prompt="The king", max_tokens=8, temperature=0, stream=True
    )
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert whole.choices[0].finish_reason == "length"


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["The king is dead.", "The king is dead!", "Enter a messenger with wine"]
    answer = client.embeddings.create(model="x", input=texts)
    vectors = [item.embedding for item in answer.data]
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1, 1, 1], abs=1e-5)
    near, far = (dot(vectors[0], vectors[n]) for n in (1, 2))
    assert near > far
    alone = client.embeddings.create(model="x", input=texts[2], encoding_format="float")
    assert alone.data[0].embedding == pytest.approx(vectors[2], abs=1e-3)
    assert answer.usage.prompt_tokens > alone.usage.prompt_tokens > 0


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "bard"
    meta = model.model_dump()["meta"]
    assert set(meta) >= {"n_ctx_train", "n_params", "size", "n_vocab", "n_embd"}
    assert all(meta[name] > 0 for name in meta)


def test_a_prompt_beyond_the_context_is_the_clients_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="x", prompt="word " * 20_000)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.type == "exceed_context_size_error"
