"""Vocabulary of a model: byte-level BPE, split as by llama.cpp's pre-tokeniser "gpt-2"."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

BEGIN, END, SYSTEM, USER, ASSISTANT = (
    "<|begin|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
SPECIAL = (BEGIN, END, SYSTEM, USER, ASSISTANT)
BEGIN_ID, END_ID = 0, 1

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def render(messages: Sequence[dict[str, str]]) -> str:
    """Return the messages as rendered by CHAT_TEMPLATE, without the leading <|begin|>."""
    return "".join(f"<|{m['role']}|>{m['content'].strip()}{END}" for m in messages)


class Vocabulary:
    """Tokens by id, in GGUF's spelling of bytes as letters, and the merges that make them."""

    def __init__(self, tokens: Sequence[str], merges: Sequence[str]) -> None:
        self.tokens = tuple(tokens)
        self.merges = tuple(merges)
        pairs = [(left, right) for left, _, right in (m.partition(" ") for m in merges)]
        codec = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, pairs))
        codec.pre_tokenizer = _words()
        codec.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
        self._codec = codec

    def encode(self, text: str) -> list[int]:
        """Return the ids of the text; the text of a special token becomes that token."""
        ids: list[int] = self._codec.encode(text).ids
        return ids


def _words() -> ByteLevel:
    """Return GPT-2's split into words, which llama.cpp has under the name "gpt-2"."""
    return ByteLevel(add_prefix_space=False, use_regex=True)


def learn(texts: Sequence[str], size: int) -> Vocabulary:
    """Return a vocabulary of exactly `size` tokens from the texts, the special ones first.

    It contains all 256 bytes, so any text can be encoded. The same texts give the same vocabulary.
    """
    codec = Tokenizer(BPE())
    codec.pre_tokenizer = _words()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    codec.train_from_iterator(texts, trainer)
    model = json.loads(codec.to_str())["model"]
    ids: dict[str, int] = model["vocab"]
    if len(ids) != size:
        raise ValueError(f"the text yields {len(ids)} tokens, not the {size} asked for")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return Vocabulary(sorted(ids, key=ids.__getitem__), merges)
