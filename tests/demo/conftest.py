"""The demo models, loaded once for this folder's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from demo.data import Corpus, divide, read_text
from tests.demo.loaded import Loaded

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
TEXTS = {"bard": "shakespeare.txt", "alice": "wonderland.txt"}


@pytest.fixture(scope="session")
def models() -> Iterator[Mapping[str, Loaded]]:
    """bard and alice by name."""
    loaded = {name: Loaded(DEMO / f"{name}.gguf") for name in TEXTS}
    yield loaded
    for model in loaded.values():
        model.close()


@pytest.fixture(scope="session")
def word_lists() -> Mapping[str, frozenset[str]]:
    """Return the committed words of each model's training text, by model name."""
    return {
        name: frozenset((DEMO / f"{name}.words.txt").read_text(encoding="utf-8").split())
        for name in TEXTS
    }


@pytest.fixture(scope="session")
def corpora() -> Mapping[str, Corpus]:
    """Return the two texts by the model trained on each; they are not part of the checkout."""
    folder = Path(os.environ.get("SWAPD_TEXTS") or ROOT.parent / "shared" / "data")
    missing = [name for name in TEXTS.values() if not (folder / name).is_file()]
    if missing:
        pytest.skip(f"no {' and '.join(missing)} in {folder}; SWAPD_TEXTS names another folder")
    return {model: divide(read_text(folder / name)) for model, name in TEXTS.items()}
