"""The official `openai` client, unchanged, against swapd with real models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import openai
import pytest

from tests.daemon import Swapd


@pytest.fixture(scope="module")
def client(both: Swapd) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{both.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="bard",
        messages=[{"role": "user", "content": "Who goes there?"}],
        max_completion_tokens=12,
        temperature=0,
    )
    assert answer.model == "bard"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 12
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_a_stream_has_the_same_text_as_a_whole_response(client: openai.OpenAI) -> None:
    ask: Any = partial(
        client.chat.completions.create,
        model="alice",
        messages=[{"role": "user", "content": "Who are you?"}],
        max_tokens=20,
        seed=7,
        temperature=0.8,
    )
    whole = ask().choices[0].message.content
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.completion_tokens <= 20
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole != ""


def test_a_completion_whole_and_streamed(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="bard", prompt="ROMEO:", max_tokens=16, temperature=0, stop=["\n\n\n"]
    )
    assert answer.choices[0].text
    chunks = client.completions.create(
        model="bard", prompt="ROMEO:", max_tokens=16, temperature=0, stream=True
    )
    assert "".join(p.choices[0].text for p in chunks) == answer.choices[0].text


def test_embeddings_are_normalized(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(
        model="bard", input=["the king", "the king", "a white rabbit"]
    )
    first, second, third = (entry.embedding for entry in answer.data)
    assert first == second != third
    assert abs(sum(x * x for x in first) - 1) < 1e-3


def test_models_are_listed_with_their_state(client: openai.OpenAI, both: Swapd) -> None:
    both.ask("bard")
    models = {m.id: m for m in client.models.list()}
    assert models.keys() == {"alice", "bard"}
    info = models["bard"].to_dict()
    assert info["state"] == "ready"
    assert client.models.retrieve("bard").id == "bard"
    with pytest.raises(openai.NotFoundError, match="there are: alice, bard"):
        client.models.retrieve("carol")


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean 'alice'"):
        client.completions.create(model="alise", prompt="x")
