"""Estimate of the memory that a worker needs, from the model's metadata and its command.

The metadata is interpreted as llama.cpp's loaders interpret it. A missing key counts as zero. Where
a layer might need less than the full KV cache, but the metadata does not say so, the full cache is
assumed: reserving too much costs a swap, reserving too little costs the worker.

The estimate only has to hold until the worker has run once and has been measured:

    need       = files + KV cache + state + process + vocabulary + compute
    KV cache   = cells × (numbers in keys × bytes of their type + the same for values), where layers
                 with a sliding window have cells for their window in each slot and for one batch
    process    = 42 MiB for the built-in worker, 96 MiB for another one, before any weights
    vocabulary = tokens in the vocabulary × 160 bytes, its tables and texts
    compute    = batch × (2 × hidden + 6 × width) × 4 bytes, the numbers of the widest layer
               + batch × cells × 2 bytes, the attention mask, where no slot sees more than the
                 trained context; without flash attention 4 bytes × heads more
               + rows × vocabulary × 8 bytes of logits: for the built-in worker a row per slot and
                 eight for the rows that stay cached, for another worker half as much per row, but
                 a row for each token of the batch

The figures of process, vocabulary and compute are fitted to the proportional set sizes of the
built-in worker on Linux; `python -m bench.memory` compares them with measurements.

All functions are pure except `estimate_spec`, which reads the headers and sizes of the files that
a command names.
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
_WINDOW_PATTERNS: Mapping[str, tuple[int, int]] = MappingProxyType(
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
"""Architectures whose sliding-window pattern is part of llama.cpp's code, as `(period, window)`.

One layer per period sees the whole context: the last one, or the first one if the period is
negative. The window in tokens applies where the file gives none. Other architectures specify
`attention.sliding_window_pattern`; without that key, no layer has a window."""


@dataclass(frozen=True, slots=True)
class MemoryFactors:
    """Properties of a model that determine its memory need. 0: not given, or none."""

    size: int
    """Bytes of all files of the model."""
    trained_context: int = 0
    """Context in tokens that the model was trained for."""
    vocabulary: int = 0
    """Tokens in the vocabulary."""
    width: int = 0
    """Numbers that represent a token between layers (embedding length)."""
    hidden: int = 0
    """Numbers in the hidden part of a feed-forward layer."""
    heads: int = 0
    """Attention heads of a layer."""
    keys: int = 0
    """Numbers in the keys of a token, over all layers that see the whole context."""
    values: int = 0
    """Numbers in the values of a token, over the same layers."""
    window: int = 0
    """Tokens that the layers with a sliding window see."""
    window_keys: int = 0
    """Numbers in the keys of a token, over the layers with a sliding window."""
    window_values: int = 0
    """Numbers in the values of a token, over the same layers."""
    state: int = 0
    """Bytes that the recurrent layers store for each sequence."""


NO_FACTORS = MemoryFactors(0)


def memory_factors(header: GgufHeader, size: int) -> MemoryFactors:
    """Return the memory factors of a model with this header and `size` bytes of files."""
    prefix = header.architecture + "."
    tokens = header.fields.get("tokenizer.ggml.tokens")
    vocabulary = (
        tokens.length if isinstance(tokens, ArrayField) else header.number(prefix + "vocab_size")
    )
    layers = _Layers(header)
    window, windowed = layers.windows()
    full_keys, window_keys = layers.sums("key", windowed)
    full_values, window_values = layers.sums("value", windowed)
    return MemoryFactors(
        size=size,
        trained_context=header.number(prefix + "context_length"),
        vocabulary=vocabulary,
        width=header.number(prefix + "embedding_length"),
        hidden=header.number(prefix + "feed_forward_length"),
        heads=header.number(prefix + "attention.head_count"),
        keys=full_keys,
        values=full_values,
        window=window,
        window_keys=window_keys,
        window_values=window_values,
        state=layers.state(),
    )


class _Layers:
    """Layers of a model, as far as they store state of previous tokens."""

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self._prefix = header.architecture + "."
        self.count = min(header.number(self._prefix + "block_count"), 4096)
        heads = self._number("attention.head_count")
        width = self._number("embedding_length")
        self._head_width = width // heads if heads else 0
        self._kv_heads = self._layer_kv_heads(self._per_layer("attention.head_count_kv", heads))

    def _number(self, key: str, default: int = 0) -> int:
        return self._header.number(self._prefix + key, default)

    def _per_layer(self, key: str, default: int) -> list[int]:
        """Return a figure per layer; the header has one for all layers or a list."""
        value = self._header.fields.get(self._prefix + key, default)
        if isinstance(value, tuple):
            listed = [max(v, 0) if isinstance(v, int) else 0 for v in value[: self.count]]
            return listed + [0] * (self.count - len(listed))
        return [int(value) if isinstance(value, int) and value >= 0 else default] * self.count

    def _layer_kv_heads(self, kv_heads: list[int]) -> list[int]:
        """Return the KV heads of each layer; 0 if it is recurrent or shares an earlier cache."""
        period = self._number("full_attention_interval")
        if period > 1:
            kv_heads = [n if (i + 1) % period == 0 else 0 for i, n in enumerate(kv_heads)]
        shared = min(self._number("attention.shared_kv_layers"), self.count)
        return kv_heads[: self.count - shared] + [0] * shared

    def windows(self) -> tuple[int, Sequence[bool]]:
        """Return the window in tokens, and for each layer True if it sees only the window."""
        period, window = _WINDOW_PATTERNS.get(self._header.architecture, (0, 0))
        window = self._number("attention.sliding_window", window)
        pattern = self._header.fields.get(self._prefix + "attention.sliding_window_pattern")
        if not window:
            return 0, [False] * self.count
        if isinstance(pattern, tuple):
            windowed = [bool(v) for v in pattern[: self.count]]
            return window, windowed + [False] * (self.count - len(windowed))
        if period and isinstance(pattern, int) and pattern > 0:
            period = pattern if period > 0 else -pattern
        if period < 0:
            return window, [i % -period != 0 for i in range(self.count)]
        return window, [period > 0 and i % period < period - 1 for i in range(self.count)]

    def sums(self, kind: str, windowed: Sequence[bool]) -> tuple[int, int]:
        """Return the numbers in a token's keys or values, over the full and the windowed layers.

        With compressed keys (MLA), the values are computed from the keys and need no memory.
        """
        if kind == "value" and self._number("attention.key_length_mla"):
            return 0, 0
        length = self._number(f"attention.{kind}_length", self._head_width)
        window_length = self._number(f"attention.{kind}_length_swa", length)
        layers = list(zip(self._kv_heads, windowed, strict=True))
        return (
            length * sum(n for n, has_window in layers if not has_window),
            window_length * sum(n for n, has_window in layers if has_window),
        )

    def state(self) -> int:
        """Return the bytes that the recurrent layers store for a sequence, by Mamba's formula."""
        inner, size = self._number("ssm.inner_size"), self._number("ssm.state_size")
        groups, kernel = self._number("ssm.group_count"), self._number("ssm.conv_kernel")
        per_layer = max(kernel - 1, 0) * (inner + 2 * groups * size) + size * inner
        return _F32 * per_layer * sum(n == 0 for n in self._kv_heads)


BUILTIN_PROCESS_BYTES = 42 * 2**20
EXTERNAL_PROCESS_BYTES = 96 * 2**20
MIN_CONTEXT = 512
"""Tokens below which a context is not lowered, since a smaller one is of no use."""
_TOKEN_BYTES = 160
"""Bytes per token of the vocabulary."""
_STEP = 256
"""Granularity of a context in tokens, as llama.cpp rounds the cells of its KV cache."""
_F16 = 2
_GIB = 2**30
_DEFAULT_CONTEXT = 4096
"""Context in tokens of the built-in worker without a flag; per slot at most the trained context."""
_CACHED_LOGIT_ROWS = 8
"""Rows of logits of the built-in worker in addition to one per slot."""


def default_context(factors: MemoryFactors, default: int) -> int:
    """Return the context in tokens for a model without an explicit one.

    The rule by file size is the reference's: 2048 above 50 GiB, 4096 above 30 GiB, else `default`;
    in each case at most the trained context.
    """
    if factors.size > 50 * _GIB:
        context = 2048
    elif factors.size > 30 * _GIB:
        context = 4096
    else:
        context = default
    return min(context, factors.trained_context or context)


def fitting_context(
    factors: MemoryFactors, default: int, budget: int, need: Callable[[int], int]
) -> int:
    """Return the default context, lowered in steps of 256 until the model fits the budget.

    The budget is in bytes, 0 for no limit. `need` returns the bytes needed for a given context.
    A model that does not fit even with the minimum context keeps the default: lowering it would not
    help, and the estimate may be too high.
    """
    context = default_context(factors, default)
    if not budget or need(context) <= budget:
        return context
    # Binary search for the largest number of steps that fits.
    low, high = 0, -(-context // _STEP)
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if need(middle * _STEP) <= budget else (low, middle)
    return min(low * _STEP, context) if low * _STEP >= MIN_CONTEXT else context


def estimate(factors: MemoryFactors, flags: LlamaFlags) -> int:
    """Return the bytes that a worker with these flags needs, by the formula above."""
    process = BUILTIN_PROCESS_BYTES if flags.builtin else EXTERNAL_PROCESS_BYTES
    vocabulary = factors.vocabulary * _TOKEN_BYTES
    state = factors.state * flags.slots
    cache, compute = kv_bytes(factors, flags), _compute(factors, flags)
    return factors.size + cache + state + process + vocabulary + compute


def kv_bytes(factors: MemoryFactors, flags: LlamaFlags) -> int:
    """Return the bytes of the KV cache; llama.cpp writes to all of it at the start."""
    cells = _cells(factors, flags)
    window_cells = min(cells, _padded(factors.window * flags.slots + flags.batch))
    if flags.full_window_cache:
        window_cells = cells
    per_cell = factors.keys * flags.key_bytes + factors.values * flags.value_bytes
    per_window_cell = (
        factors.window_keys * flags.key_bytes + factors.window_values * flags.value_bytes
    )
    return int(cells * per_cell + window_cells * per_window_cell)


def _cells(factors: MemoryFactors, flags: LlamaFlags) -> int:
    """Return the tokens that the cache holds, for all slots together."""
    trained = factors.trained_context
    if flags.context is None and flags.builtin:
        return _padded(min(_DEFAULT_CONTEXT, trained * flags.slots or _DEFAULT_CONTEXT))
    return _padded(flags.context or trained or _DEFAULT_CONTEXT)


def _padded(cells: int) -> int:
    """Return the number of cells, rounded up to a multiple of 256."""
    return -(-cells // _STEP) * _STEP


def _compute(factors: MemoryFactors, flags: LlamaFlags) -> int:
    """Return the bytes of the buffers for computing one batch."""
    batch, cells = flags.batch, _cells(factors, flags)
    if factors.trained_context:
        cells = min(cells, factors.trained_context * flags.slots)
    layer = batch * (2 * factors.hidden + 6 * factors.width) * _F32
    mask = batch * cells * _F16 if factors.keys or factors.window_keys else 0
    scores = 0 if flags.flash_attention else batch * cells * factors.heads * _F32
    rows = 2 * (flags.slots + _CACHED_LOGIT_ROWS) if flags.builtin else batch
    return layer + mask + scores + rows * factors.vocabulary * _F32


def estimate_spec(spec: ModelSpec, folder: Path) -> int:
    """Return the bytes that the model's worker needs; 0 if its command names no file.

    Relative paths are resolved against `folder`.
    """
    file = model_file(spec)
    if file is None:
        return 0
    size = _size_of_parts(file, folder)
    if not size or not speaks_llama_flags(spec.launch.argv, spec.launch.builtin):
        return size
    flags = parse_llama_flags(spec.launch.argv, spec.launch.builtin)
    extra = sum(file_size(folder / other) for other in flags.extra_files)
    need = _need_of(folder / file, size, flags) + extra
    draft = folder / flags.draft
    return need + (_need_of(draft, file_size(draft), flags) if flags.draft else 0)


def _need_of(path: Path, size: int, flags: LlamaFlags) -> int:
    try:
        factors = memory_factors(read_model_header(path), size)
    except (OSError, ValueError, DamagedModelError):
        # The worker reports the damage when it loads the file.
        return size
    return estimate(factors, flags) if factors.keys or factors.state else size


def _size_of_parts(file: str, folder: Path) -> int:
    """Return the bytes of all parts of a model file; 0 if one of them does not exist."""
    sizes = [file_size(folder / part) for part in split_parts(file)]
    # A name that is not a file on this host may still be valid for the worker.
    return sum(sizes) if all(sizes) else 0
