"""llama.cpp cuts text into the very tokens the models were trained on."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from demo.data import Corpus, typeset
from tests.demo.conftest import DEMO
from tests.demo.loaded import Loaded

CHAT = "<|begin|><|system|>Be brief.<|end|><|user|>Don't!<|end|><|assistant|>'Tis so.<|end|>"


@pytest.mark.parametrize("name", ["bard", "alice"])
def test_llama_cpp_and_the_trainer_give_the_same_tokens(
    name: str, models: Mapping[str, Loaded], corpora: Mapping[str, Corpus]
) -> None:
    pytest.importorskip("tokenizers", reason="the trainer's tokenizer is in the extra `train`")
    pytest.importorskip("torch", reason="the trainer is in the extra `train`")
    from demo.export import read_model

    _, vocabulary, _ = read_model(DEMO / f"{name}.gguf")
    for corpus in corpora.values():
        for text in (corpus.held, typeset(corpus.held)):
            assert models[name].tokenize(text, begin=False) == vocabulary.encode(text)
    assert models[name].tokenize(CHAT, special=True, begin=False) == vocabulary.encode(CHAT)
