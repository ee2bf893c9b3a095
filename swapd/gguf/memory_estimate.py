"""What a model's need for memory depends on, taken out of its metadata. Pure.

Named and counted as llama.cpp does, by what its loaders read. A key that is not there counts as
nothing, and where a layer might do with less than the full cache, but nothing says so, it is taken
to need all of it: too much reserved costs a swap, too little costs the worker.

How much context a model gets and how much memory to reserve for it. Pure.

The estimate only has to hold until the worker has run once and was measured:

    need    = files + KV cache + state + process + words + compute
    KV      = cells × (numbers in keys × bytes of their type + the same of values), where layers
              with a sliding window have cells for their window in each slot and one batch
    process = 42 MiB for a worker of ours, 96 for another, before any weights
    words   = vocabulary × 160 bytes, its tables and texts
    compute = batch × (2 × hidden + 6 × width) × 4 bytes, the widest layer's numbers
            + batch × cells × 2 bytes, who sees whom, where no slot sees more than the model was
              trained for; without flash attention 4 bytes × heads more
            + rows × vocabulary × 8 bytes of logits: a row for each slot, and eight for what stays
              in the cache, for a worker of ours, half as much but for the whole batch for another

The figures of the process, of words and of compute are fitted to the proportional set sizes of our
workers on Linux; `python -m bench.memory` compares.

What a worker is likely to hold, by its command and the beginnings of the files that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from swapd.domain.models import ModelSpec
from swapd.gguf.llama_flags import LlamaFlags, model_file, parse_llama_flags, speaks_llama_flags
from swapd.gguf.reader import (
    ArrayField,
    DamagedModelError,
    GgufHeader,
    read_model_header,
    split_parts,
)
from swapd.system.state_files import size as file_size

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
class MemoryFactors:
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


NOTHING = MemoryFactors(0)


def memory_factors(head: GgufHeader, size: int) -> MemoryFactors:
    """Take the facts out of a model's head."""
    own = head.architecture + "."
    tokens = head.fields.get("tokenizer.ggml.tokens")
    vocabulary = (
        tokens.length if isinstance(tokens, ArrayField) else head.number(own + "vocab_size")
    )
    layers = _Layers(head)
    window, near = layers.windows()
    far_keys, near_keys = layers.sums("key", near)
    far_values, near_values = layers.sums("value", near)
    return MemoryFactors(
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

    def __init__(self, head: GgufHeader) -> None:
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


OWN_BYTES = 42 * 2**20
FOREIGN_BYTES = 96 * 2**20
LEAST_CONTEXT = 512
"""Tokens below which a context is not lowered: less is of no use."""
_WORD = 160
_STEP = 256
_F16 = 2
_GIB = 2**30
_DEFAULT_CONTEXT = 4096
"""What our worker takes unless told, for each slot at most what the model was trained for."""
_KEPT = 8
"""Rows of logits that our worker has beside one for each slot."""


def default_context(facts: MemoryFactors, usual: int) -> int:
    """Tokens for a model nobody said anything about: the reference's rule by size, within training.

    Above 50 GiB 2048, above 30 GiB 4096, else `usual`.
    """
    if facts.size > 50 * _GIB:
        context = 2048
    elif facts.size > 30 * _GIB:
        context = 4096
    else:
        context = usual
    return min(context, facts.trained_context or context)


def fitting_context(
    facts: MemoryFactors, usual: int, budget: int, need: Callable[[int], int]
) -> int:
    """The default context, lowered in steps of 256 until the model fits the budget (0: no limit).

    `need` tells what it takes with so much context. A model that does not even fit with the least
    context keeps the default: lowering it would not help, and the machine may know better than the
    estimate.
    """
    context = default_context(facts, usual)
    if not budget or need(context) <= budget:
        return context
    low, high = 0, -(-context // _STEP)
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if need(middle * _STEP) <= budget else (low, middle)
    return min(low * _STEP, context) if low * _STEP >= LEAST_CONTEXT else context


def estimate(facts: MemoryFactors, terms: LlamaFlags) -> int:
    """Bytes that a worker will hold which runs the model on these terms, by the formula above."""
    process = OWN_BYTES if terms.own else FOREIGN_BYTES
    words = facts.vocabulary * _WORD
    state = facts.state * terms.slots
    return facts.size + kv_bytes(facts, terms) + state + process + words + _compute(facts, terms)


def kv_bytes(facts: MemoryFactors, terms: LlamaFlags) -> int:
    """Bytes of the KV cache; llama.cpp writes to all of it at the start."""
    cells = _cells(facts, terms)
    near = min(cells, _padded(facts.window * terms.slots + terms.batch))
    if terms.whole_windows:
        near = cells
    each = facts.keys * terms.key_bytes + facts.values * terms.value_bytes
    each_near = facts.near_keys * terms.key_bytes + facts.near_values * terms.value_bytes
    return int(cells * each + near * each_near)


def _cells(facts: MemoryFactors, terms: LlamaFlags) -> int:
    """Tokens that the cache holds, of all slots together."""
    trained = facts.trained_context
    if terms.context is None and terms.own:
        return _padded(min(_DEFAULT_CONTEXT, trained * terms.slots or _DEFAULT_CONTEXT))
    return _padded(terms.context or trained or _DEFAULT_CONTEXT)


def _padded(cells: int) -> int:
    return -(-cells // _STEP) * _STEP


def _compute(facts: MemoryFactors, terms: LlamaFlags) -> int:
    batch, cells = terms.batch, _cells(facts, terms)
    if facts.trained_context:
        cells = min(cells, facts.trained_context * terms.slots)
    layer = batch * (2 * facts.hidden + 6 * facts.width) * _F32
    seen = batch * cells * _F16 if facts.keys or facts.near_keys else 0
    scores = 0 if terms.flash else batch * cells * facts.heads * _F32
    rows = 2 * (terms.slots + _KEPT) if terms.own else batch
    return layer + seen + scores + rows * facts.vocabulary * _F32


def estimate_spec(spec: ModelSpec, beside: Path) -> int:
    """What its worker will hold, as far as its file and its command tell; 0 without a file."""
    named = model_file(spec)
    if named is None:
        return 0
    size = _size_of_parts(named, beside)
    if not size or not speaks_llama_flags(spec.launch.argv, spec.launch.builtin):
        return size
    terms = parse_llama_flags(spec.launch.argv, spec.launch.builtin)
    besides = sum(file_size(beside / other) for other in terms.besides)
    need = _need_of(beside / named, size, terms) + besides
    draft = beside / terms.draft
    return need + (_need_of(draft, file_size(draft), terms) if terms.draft else 0)


def _need_of(path: Path, size: int, terms: LlamaFlags) -> int:
    try:
        facts = memory_factors(read_model_header(path), size)
    except (OSError, ValueError, DamagedModelError):
        # The worker will say what is wrong with it.
        return size
    return estimate(facts, terms) if facts.keys or facts.state else size


def _size_of_parts(file: str, beside: Path) -> int:
    """Bytes of a model's file, all its parts; 0 when one of them is not there."""
    sizes = [file_size(beside / part) for part in split_parts(file)]
    # A name that is no file here may still mean something to the worker.
    return sum(sizes) if all(sizes) else 0
