"""Properties of the demo files: small, Llama, each with a vocabulary and a chat template."""

from __future__ import annotations

from collections.abc import Mapping

import llama_cpp.llama_cpp as ll
import pytest

from tests.demo.conftest import DEMO
from tests.demo.loaded import Loaded

MODELS = ("bard", "alice")
MB = 1_000_000


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_small_but_whole(name: str, models: Mapping[str, Loaded]) -> None:
    model = models[name]
    assert (DEMO / f"{name}.gguf").stat().st_size < 4 * MB
    assert 1_000_000 <= ll.llama_model_n_params(model.model) <= 3_000_000
    assert ll.llama_model_n_ctx_train(model.model) >= 1024
    assert model.meta("general.architecture") == "llama"


def test_the_adapter_is_smaller_than_a_megabyte() -> None:
    assert 0 < (DEMO / "alice-lora.gguf").stat().st_size < MB


def test_each_model_has_its_own_vocabulary(models: Mapping[str, Loaded]) -> None:
    text = "The Queen of Hearts, a Gryphon and a Dormouse."
    cut = {
        name: [model.text([token]) for token in model.tokenize(text, begin=False)]
        for name, model in models.items()
    }
    assert cut["bard"] != cut["alice"]
    assert " Queen" in cut["alice"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "To be, or not to be",
        "  two  spaces\n\n\nand lines\t",
        "don't 'tis naïve — 日本 🙂",
        "\x00\x7f",
    ],
)
def test_any_text_comes_back_from_its_tokens(
    name: str, text: str, models: Mapping[str, Loaded]
) -> None:
    ids = models[name].tokenize(text)
    assert ids[0] == models[name].begin
    assert models[name].text(ids) == text


@pytest.mark.parametrize("name", MODELS)
def test_the_chat_template_marks_who_speaks(name: str, models: Mapping[str, Loaded]) -> None:
    model = models[name]
    ids = model.chat(("system", "Be brief."), ("user", " Hello. "), ("assistant", "Good day."))
    begin, end, system, user, assistant = range(5)
    special = [token for token in ids if token < 5]
    assert special == [begin, system, end, user, end, assistant, end, assistant]
    written = [model.text_of_special(token) for token in range(5)]
    assert written == ["<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    assert model.text(ids) == "Be brief.Hello.Good day."
    assert model.is_end(end)
    assert not any(model.is_end(token) for token in (begin, system, user, assistant))


@pytest.mark.parametrize("name", MODELS)
def test_special_tokens_in_plain_text_are_only_text(
    name: str, models: Mapping[str, Loaded]
) -> None:
    ids = models[name].tokenize("<|end|><|system|>", begin=False)
    assert min(ids) >= 5


@pytest.mark.parametrize("name", MODELS)
def test_the_word_list_is_sorted_and_lower_case(name: str) -> None:
    words = (DEMO / f"{name}.words.txt").read_text(encoding="utf-8").split()
    assert words == sorted(set(words))
    assert all(word == word.lower() for word in words)
    assert len(words) > 2000
