"""Losses in the table of demo/README.md, measured again."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from demo.data import Corpus
from tests.demo.conftest import DEMO
from tests.demo.loaded import Loaded

MARGIN = 0.5
OTHER = {"bard": "alice", "alice": "bard"}


@pytest.fixture(scope="session")
def losses(
    models: Mapping[str, Loaded], corpora: Mapping[str, Corpus]
) -> Mapping[tuple[str, str], float]:
    """Return bits per byte by (model, model of the held-out text)."""
    measured = {
        (reader, of): models[reader].bits_per_byte(corpora[of].held)
        for reader in models
        for of in corpora
    }
    with models["bard"].adapted(DEMO / "alice-lora.gguf"):
        for of in corpora:
            measured["bard + alice-lora", of] = models["bard"].bits_per_byte(corpora[of].held)
    return measured


@pytest.mark.parametrize("name", ["bard", "alice"])
def test_each_model_reads_its_training_text_clearly_better_than_the_other_does(
    name: str, losses: Mapping[tuple[str, str], float]
) -> None:
    assert losses[name, name] < losses[OTHER[name], name] - MARGIN


@pytest.mark.parametrize("name", ["bard", "alice"])
def test_each_model_reads_its_training_text_clearly_better_than_the_other_text(
    name: str, losses: Mapping[tuple[str, str], float]
) -> None:
    assert losses[name, name] < losses[name, OTHER[name]] - MARGIN


def test_the_adapter_makes_bard_read_the_other_text_clearly_better(
    losses: Mapping[tuple[str, str], float],
) -> None:
    assert losses["bard + alice-lora", "alice"] < losses["bard", "alice"] - MARGIN


def test_the_readme_has_the_measured_losses(losses: Mapping[tuple[str, str], float]) -> None:
    text = (DEMO / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (bard|alice|bard \+ alice-lora) \| (\d\.\d\d) \| (\d\.\d\d) \|", text, re.MULTILINE
    )
    stated = {
        (reader, of): float(x)
        for reader, *xs in rows
        for of, x in zip(("bard", "alice"), xs, strict=True)
    }
    assert stated.keys() == losses.keys()
    for pair, value in stated.items():
        assert losses[pair] == pytest.approx(value, abs=0.02), pair


@pytest.mark.parametrize("name", ["bard", "alice"])
def test_the_committed_word_list_is_that_of_the_training_text(
    name: str, corpora: Mapping[str, Corpus]
) -> None:
    committed = (DEMO / f"{name}.words.txt").read_text(encoding="utf-8").split()
    assert committed == corpora[name].words


def test_the_held_out_piece_is_a_twentieth_and_not_trained_on(
    corpora: Mapping[str, Corpus],
) -> None:
    for corpus in corpora.values():
        whole = len(corpus.before) + len(corpus.held) + len(corpus.after)
        assert 0.045 < len(corpus.held) / whole < 0.06
        for piece in corpus.pieces:
            assert corpus.held[:200] not in piece
