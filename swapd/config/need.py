"""How much context a model gets and how much memory to reserve for it. Pure.

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
"""

from __future__ import annotations

from collections.abc import Callable

from swapd.config.facts import Facts
from swapd.config.terms import Terms

OWN_BYTES = 42 * 2**20
FOREIGN_BYTES = 96 * 2**20
LEAST_CONTEXT = 512
"""Tokens below which a context is not lowered: less is of no use."""
_WORD = 160
_STEP = 256
_F16 = 2
_F32 = 4
_GIB = 2**30
_DEFAULT_CONTEXT = 4096
"""What our worker takes unless told, for each slot at most what the model was trained for."""
_KEPT = 8
"""Rows of logits that our worker has beside one for each slot."""


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


def fitting_context(facts: Facts, usual: int, budget: int, need: Callable[[int], int]) -> int:
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


def estimate(facts: Facts, terms: Terms) -> int:
    """Bytes that a worker will hold which runs the model on these terms, by the formula above."""
    process = OWN_BYTES if terms.own else FOREIGN_BYTES
    words = facts.vocabulary * _WORD
    state = facts.state * terms.slots
    return facts.size + kv_bytes(facts, terms) + state + process + words + _compute(facts, terms)


def kv_bytes(facts: Facts, terms: Terms) -> int:
    """Bytes of the KV cache; llama.cpp writes to all of it at the start."""
    cells = _cells(facts, terms)
    near = min(cells, _padded(facts.window * terms.slots + terms.batch))
    if terms.whole_windows:
        near = cells
    each = facts.keys * terms.key_bytes + facts.values * terms.value_bytes
    each_near = facts.near_keys * terms.key_bytes + facts.near_values * terms.value_bytes
    return int(cells * each + near * each_near)


def _cells(facts: Facts, terms: Terms) -> int:
    """Tokens that the cache holds, of all slots together."""
    trained = facts.trained_context
    if terms.context is None and terms.own:
        return _padded(min(_DEFAULT_CONTEXT, trained * terms.slots or _DEFAULT_CONTEXT))
    return _padded(terms.context or trained or _DEFAULT_CONTEXT)


def _padded(cells: int) -> int:
    return -(-cells // _STEP) * _STEP


def _compute(facts: Facts, terms: Terms) -> int:
    batch, cells = terms.batch, _cells(facts, terms)
    if facts.trained_context:
        cells = min(cells, facts.trained_context * terms.slots)
    layer = batch * (2 * facts.hidden + 6 * facts.width) * _F32
    seen = batch * cells * _F16 if facts.keys or facts.near_keys else 0
    scores = 0 if terms.flash else batch * cells * facts.heads * _F32
    rows = 2 * (terms.slots + _KEPT) if terms.own else batch
    return layer + seen + scores + rows * facts.vocabulary * _F32
