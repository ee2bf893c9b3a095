"""Output of the demo models: words of their training text, complete, and not of the other text."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from demo.data import words_of
from tests.demo.conftest import DEMO
from tests.demo.loaded import Loaded

MODELS = ("bard", "alice")
SEEDS = (1, 2, 3)
QUESTIONS = ("Who are you?", "What is love?", "Tell me a story.", "Hello!", "Where is the king?")

WONDERLAND = ("Alice", "Caterpillar", "Gryphon", "Hatter", "Mock Turtle")


def share_in(text: str, words: frozenset[str]) -> float:
    """Return the share of the text's words that are in the list."""
    found = words_of(text)
    assert found
    return sum(word in words for word in found) / len(found)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", MODELS)
def test_200_sampled_tokens_are_words_of_the_training_text(
    name: str, seed: int, models: Mapping[str, Loaded], word_lists: Mapping[str, frozenset[str]]
) -> None:
    model = models[name]
    ids = model.sample(model.tokenize(""), 200, seed=seed, ends=False)
    assert len(ids) == 200
    assert len(set(ids)) > 60
    assert share_in(model.text(ids), word_lists[name]) >= 0.85


@pytest.mark.parametrize("name", MODELS)
def test_chat_answers_are_words_of_the_training_text_and_end(
    name: str, models: Mapping[str, Loaded], word_lists: Mapping[str, frozenset[str]]
) -> None:
    model = models[name]
    answers = [
        model.sample(model.chat(("user", question)), 200, seed=seed)
        for seed, question in enumerate(QUESTIONS)
    ]
    assert sum(len(ids) < 200 for ids in answers) >= 3
    assert all(answers)
    text = " ".join(model.text(ids) for ids in answers)
    assert share_in(text, word_lists[name]) >= 0.85


@pytest.mark.parametrize("name", MODELS)
def test_words_are_still_known_at_the_end_of_the_context(
    name: str, models: Mapping[str, Loaded], word_lists: Mapping[str, frozenset[str]]
) -> None:
    model = models[name]
    ids = model.sample(model.tokenize(""), 1000, seed=7, ends=False)
    assert len(ids) == 1000
    assert share_in(model.text(ids[800:]), word_lists[name]) >= 0.85


def test_the_word_check_can_fail(
    models: Mapping[str, Loaded], word_lists: Mapping[str, frozenset[str]]
) -> None:
    hot = models["bard"].sample(models["bard"].tokenize(""), 200, seed=1, temperature=5, ends=False)
    assert share_in(models["bard"].text(hot), word_lists["bard"]) < 0.85
    assert share_in("Quantum xylophonists tweeted brillig gigabytes", word_lists["alice"]) < 0.5


@pytest.mark.parametrize("prompt", ["", "'Come, come,'", "Speak!"])
def test_the_adapter_changes_the_output_of_bard(prompt: str, models: Mapping[str, Loaded]) -> None:
    bard = models["bard"]

    def output() -> str:
        ids = bard.sample(bard.tokenize(prompt), 80, seed=0, temperature=0, ends=False)
        return bard.text(ids)

    alone = output()
    with bard.adapted(DEMO / "alice-lora.gguf"):
        adapted = output()
    assert output() == alone
    assert not any(name in alone for name in WONDERLAND)
    assert any(name in adapted for name in WONDERLAND)
