"""What a model's need for memory depends on, taken out of its metadata. Pure.

Named and counted as llama.cpp does, by what its loaders read. A key that is not there counts as
nothing, and where a layer might do with less than the full cache, but nothing says so, it is taken
to need all of it: too much reserved costs a swap, too little costs the worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from swapd.config.metadata import Counted, Head

_F32 = 4
_PATTERNS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "gemma2": (2, 4096),
        "gemma3": (6, 0),
        "gemma3n": (5, 0),
        "gemma-embedding": (6, 0),
        "cohere2": (4, 0),
        "olmo2": (4, 0),
        "exaone4": (4, 0),
        "afmoe": (4, 0),
        "llama4": (4, 8192),
        "gpt-oss": (2, 0),
        "smallthinker": (-4, 0),
        "modern-bert": (3, 0),
    }
)
"""Architectures whose pattern of windows is in llama.cpp's code: of so many layers one sees all,
the last of them (negative: the first); and the window where the file names none. Others say it in
`attention.sliding_window_pattern`; without a word, no layer has a window."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What of a model its need depends on. 0: it does not say, or has none."""

    size: int
    """Bytes of all its files."""
    trained_context: int = 0
    """Tokens it was trained for."""
    vocabulary: int = 0
    width: int = 0
    """Numbers that stand for a token between layers."""
    hidden: int = 0
    """Numbers in the middle of a feed-forward layer."""
    heads: int = 0
    keys: int = 0
    """Numbers in the keys of a token, over all layers that see the whole context."""
    values: int = 0
    window: int = 0
    """Tokens that the other layers see."""
    near_keys: int = 0
    """Numbers in the keys of a token, over those layers."""
    near_values: int = 0
    state: int = 0
    """Bytes that the recurrent layers keep for each sequence."""


NOTHING = Facts(0)


def facts_of(head: Head, size: int) -> Facts:
    """Take the facts out of a model's head."""
    own = head.architecture + "."
    tokens = head.fields.get("tokenizer.ggml.tokens")
    vocabulary = tokens.length if isinstance(tokens, Counted) else head.number(own + "vocab_size")
    layers = _Layers(head)
    window, near = layers.windows()
    far_keys, near_keys = layers.sums("key", near)
    far_values, near_values = layers.sums("value", near)
    return Facts(
        size=size,
        trained_context=head.number(own + "context_length"),
        vocabulary=vocabulary,
        width=head.number(own + "embedding_length"),
        hidden=head.number(own + "feed_forward_length"),
        heads=head.number(own + "attention.head_count"),
        keys=far_keys,
        values=far_values,
        window=window,
        near_keys=near_keys,
        near_values=near_values,
        state=layers.state(),
    )


class _Layers:
    """The layers of a model, as far as they keep something of the tokens before."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._own = head.architecture + "."
        self.count = min(head.number(self._own + "block_count"), 4096)
        heads = self._number("attention.head_count")
        width = self._number("embedding_length")
        self._head_width = width // heads if heads else 0
        self._kv_heads = self._attending(self._each("attention.head_count_kv", heads))

    def _number(self, key: str, default: int = 0) -> int:
        return self._head.number(self._own + key, default)

    def _each(self, key: str, default: int) -> list[int]:
        """A figure that is one for all layers or a list with one for each."""
        value = self._head.fields.get(self._own + key, default)
        if isinstance(value, tuple):
            listed = [max(v, 0) if isinstance(v, int) else 0 for v in value[: self.count]]
            return listed + [0] * (self.count - len(listed))
        return [int(value) if isinstance(value, int) and value >= 0 else default] * self.count

    def _attending(self, kv_heads: list[int]) -> list[int]:
        """KV heads of each layer; none where it is recurrent, or uses the cache of one before."""
        every = self._number("full_attention_interval")
        if every > 1:
            kv_heads = [n if (i + 1) % every == 0 else 0 for i, n in enumerate(kv_heads)]
        shared = min(self._number("attention.shared_kv_layers"), self.count)
        return kv_heads[: self.count - shared] + [0] * shared

    def windows(self) -> tuple[int, Sequence[bool]]:
        """The window, and for each layer whether it sees no more than that."""
        every, window = _PATTERNS.get(self._head.architecture, (0, 0))
        window = self._number("attention.sliding_window", window)
        said = self._head.fields.get(self._own + "attention.sliding_window_pattern")
        if not window:
            return 0, [False] * self.count
        if isinstance(said, tuple):
            near = [bool(v) for v in said[: self.count]]
            return window, near + [False] * (self.count - len(near))
        if every and isinstance(said, int) and said > 0:
            every = said if every > 0 else -said
        if every < 0:
            return window, [i % -every != 0 for i in range(self.count)]
        return window, [every > 0 and i % every < every - 1 for i in range(self.count)]

    def sums(self, kind: str, near: Sequence[bool]) -> tuple[int, int]:
        """Numbers in the keys or values of a token: over the layers that see all, and the others.

        Where keys are kept in a compressed form (MLA), the values are made of them.
        """
        if kind == "value" and self._number("attention.key_length_mla"):
            return 0, 0
        length = self._number(f"attention.{kind}_length", self._head_width)
        short = self._number(f"attention.{kind}_length_swa", length)
        both = list(zip(self._kv_heads, near, strict=True))
        return (
            length * sum(n for n, is_near in both if not is_near),
            short * sum(n for n, is_near in both if is_near),
        )

    def state(self) -> int:
        """Bytes that the recurrent layers keep for a sequence, as Mamba's have it."""
        inner, size = self._number("ssm.inner_size"), self._number("ssm.state_size")
        groups, kernel = self._number("ssm.group_count"), self._number("ssm.conv_kernel")
        each = max(kernel - 1, 0) * (inner + 2 * groups * size) + size * inner
        return _F32 * each * sum(n == 0 for n in self._kv_heads)
