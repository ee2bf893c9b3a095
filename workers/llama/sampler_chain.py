"""How the next token is drawn: the chain of samplers that a request's wishes make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from workers.llama.model import Model
from workers.llama.sampler import ConstrainedSampler, GrammarConstraint, Sampler
from workers.settings import ANY_SEED, Sampling, within

MIROSTAT_TOKENS = 100
"""The number of likeliest tokens that version 1 estimates by, as llama-server has it."""


def build_sampler_chain(
    wish: Sampling,
    model: Model,
    context: int,
    prompt: Sequence[int],
    guide: GrammarConstraint | None = None,
) -> Sampler:
    """The chain for `wish`, in the order of its `samplers`, having seen the end of `prompt`.

    `context` is what -1 means for what is looked back on. With a `guide`, what is drawn follows it.
    """
    chain = Sampler() if guide is None else ConstrainedSampler(model, guide)
    seed = ANY_SEED if wish.seed < 0 else wish.seed & 0xFFFFFFFF
    if wish.logit_bias:
        chain.add_logit_bias(model.n_vocab, wish.logit_bias)
    if wish.mirostat and wish.temperature > 0:
        chain.add("temp", wish.temperature)
        how = (wish.mirostat_tau, wish.mirostat_eta)
        if wish.mirostat == 1:
            chain.add("mirostat", model.n_vocab, seed, *how, MIROSTAT_TOKENS)
        else:
            chain.add("mirostat_v2", seed, *how)
        return chain
    for name in wish.samplers:
        if wish.uses(name):
            _ADD[name](chain, wish, model, context)
    last = wish.looks_back(context)
    for token in prompt[-last:] if last else ():
        chain.accept(token)
    if wish.temperature <= 0:
        chain.add("greedy")
    elif "adaptive_p" in wish.samplers and wish.adaptive_target >= 0:
        chain.add("adaptive_p", wish.adaptive_target, wish.adaptive_decay, seed)
    else:
        chain.add("dist", seed)
    return chain


Adds = Callable[[Sampler, Sampling, Model, int], None]


def _penalties(chain: Sampler, wish: Sampling, model: Model, context: int) -> None:
    chain.add(
        "penalties",
        model.n_vocab,
        within(wish.repeat_last_n, context),
        wish.repeat_penalty,
        wish.frequency_penalty,
        wish.presence_penalty,
    )


def _dry(chain: Sampler, wish: Sampling, model: Model, context: int) -> None:
    chain.add_dry(
        model,
        wish.dry_multiplier,
        wish.dry_base,
        wish.dry_allowed_length,
        within(wish.dry_penalty_last_n, context),
        wish.dry_sequence_breakers,
    )


def _xtc(chain: Sampler, wish: Sampling, _model: Model, _context: int) -> None:
    seed = ANY_SEED if wish.seed < 0 else wish.seed & 0xFFFFFFFF
    chain.add("xtc", wish.xtc_probability, wish.xtc_threshold, wish.min_keep, seed)


def _temperature(chain: Sampler, wish: Sampling, _model: Model, _context: int) -> None:
    if wish.dynatemp_range > 0:
        chain.add("temp_ext", wish.temperature, wish.dynatemp_range, wish.dynatemp_exponent)
    else:
        chain.add("temp", wish.temperature)


_ADD: Mapping[str, Adds] = {
    "penalties": _penalties,
    "dry": _dry,
    "top_n_sigma": lambda chain, wish, *_: chain.add("top_n_sigma", wish.top_n_sigma),
    "top_k": lambda chain, wish, *_: chain.add("top_k", wish.top_k),
    "typ_p": lambda chain, wish, *_: chain.add("typical", wish.typical_p, max(wish.min_keep, 1)),
    "top_p": lambda chain, wish, *_: chain.add("top_p", wish.top_p, max(wish.min_keep, 1)),
    "min_p": lambda chain, wish, *_: chain.add("min_p", wish.min_p, max(wish.min_keep, 1)),
    "xtc": _xtc,
    "temperature": _temperature,
    "infill": lambda chain, _wish, model, _context: chain.add("infill", model.vocab),
}
