"""How much context a model gets and how much memory to reserve for it. Pure.

The estimate only has to hold until the worker has run once and was measured:

    need = file + KV cache + process + compute
    KV cache = context × Σ over layers (KV heads × (key length + value length)) × 2 bytes (f16)
    process  = 96 MiB, what a worker holds before any weights
    compute  = 512 × vocabulary × 4 bytes, the logits of one physical batch, the largest buffer
"""

from __future__ import annotations

from dataclasses import dataclass

from swapd.config.metadata import Counted, Head

PROCESS_BYTES = 96 * 2**20
LEAST_CONTEXT = 512
"""Tokens below which a context is not lowered: less is of no use."""
_STEP = 256
_BATCH = 512
_F16 = 2
_F32 = 4
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Facts:
    """What of a model's metadata its need depends on."""

    size: int
    """Bytes of all its files."""
    trained_context: int = 0
    """Tokens it was trained for; 0: it does not say."""
    kv_per_token: int = 0
    """Bytes of KV cache for each token of context."""
    vocabulary: int = 0


def facts_of(head: Head, size: int) -> Facts:
    """Take the facts out of a model's head; what is not there counts as nothing."""
    own = head.architecture + "."
    layers = head.number(own + "block_count")
    heads = head.number(own + "attention.head_count")
    width = head.number(own + "embedding_length") // heads if heads else 0
    key = head.number(own + "attention.key_length", width)
    value = head.number(own + "attention.value_length", width)
    per_layer = head.fields.get(own + "attention.head_count_kv", heads)
    if isinstance(per_layer, tuple):
        kv_heads = sum(int(n) for n in per_layer)
    else:
        kv_heads = layers * (int(per_layer) if isinstance(per_layer, int) else heads)
    tokens = head.fields.get("tokenizer.ggml.tokens")
    vocabulary = tokens.length if isinstance(tokens, Counted) else head.number(own + "vocab_size")
    return Facts(
        size=size,
        trained_context=head.number(own + "context_length"),
        kv_per_token=kv_heads * (key + value) * _F16,
        vocabulary=vocabulary,
    )


def default_context(facts: Facts, usual: int) -> int:
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


def fitting_context(facts: Facts, usual: int, budget: int) -> int:
    """The default context, lowered in steps of 256 until the model fits the budget (0: no limit).

    A model that does not even fit with the least context keeps the default: lowering it would not
    help, and the machine may know better than the estimate.
    """
    context = default_context(facts, usual)
    if not budget or estimate(facts, context) <= budget:
        return context
    spare = budget - estimate(facts, 0)
    fits = spare // facts.kv_per_token // _STEP * _STEP if facts.kv_per_token else 0
    return min(fits, context) if fits >= LEAST_CONTEXT else context


def estimate(facts: Facts, context: int) -> int:
    """Bytes that a worker with this context will hold, by the formula above."""
    compute = _BATCH * facts.vocabulary * _F32
    return facts.size + facts.kv_per_token * context + PROCESS_BYTES + compute
