"""The chain of samplers for a request's sampling options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from workers.llama.model import Model
from workers.llama.sampler import ConstrainedSampler, GrammarConstraint, Sampler
from workers.settings import ANY_SEED, Sampling, lookback_length

MIROSTAT_TOKENS = 100
"""Number of likeliest tokens for the estimate of Mirostat 1, as in llama-server."""


def build_sampler_chain(
    sampling: Sampling,
    model: Model,
    context: int,
    prompt: Sequence[int],
    constraint: GrammarConstraint | None = None,
) -> Sampler:
    """Return the chain for `sampling`, in the order of its `samplers`, after the end of `prompt`.

    `context` is the number of past tokens that -1 means. With a `constraint`, its grammar applies
    to the drawn tokens.
    """
    chain = Sampler() if constraint is None else ConstrainedSampler(model, constraint)
    seed = ANY_SEED if sampling.seed < 0 else sampling.seed & 0xFFFFFFFF
    if sampling.logit_bias:
        chain.add_logit_bias(model.n_vocab, sampling.logit_bias)
    if sampling.mirostat and sampling.temperature > 0:
        chain.add("temp", sampling.temperature)
        target = (sampling.mirostat_tau, sampling.mirostat_eta)
        if sampling.mirostat == 1:
            chain.add("mirostat", model.n_vocab, seed, *target, MIROSTAT_TOKENS)
        else:
            chain.add("mirostat_v2", seed, *target)
        return chain
    for name in sampling.samplers:
        if sampling.uses(name):
            _ADD[name](chain, sampling, model, context)
    last = sampling.lookback(context)
    for token in prompt[-last:] if last else ():
        chain.accept(token)
    if sampling.temperature <= 0:
        chain.add("greedy")
    elif "adaptive_p" in sampling.samplers and sampling.adaptive_target >= 0:
        chain.add("adaptive_p", sampling.adaptive_target, sampling.adaptive_decay, seed)
    else:
        chain.add("dist", seed)
    return chain


Adds = Callable[[Sampler, Sampling, Model, int], None]


def _penalties(chain: Sampler, sampling: Sampling, model: Model, context: int) -> None:
    chain.add(
        "penalties",
        model.n_vocab,
        lookback_length(sampling.repeat_last_n, context),
        sampling.repeat_penalty,
        sampling.frequency_penalty,
        sampling.presence_penalty,
    )


def _dry(chain: Sampler, sampling: Sampling, model: Model, context: int) -> None:
    chain.add_dry(
        model,
        sampling.dry_multiplier,
        sampling.dry_base,
        sampling.dry_allowed_length,
        lookback_length(sampling.dry_penalty_last_n, context),
        sampling.dry_sequence_breakers,
    )


def _xtc(chain: Sampler, sampling: Sampling, _model: Model, _context: int) -> None:
    seed = ANY_SEED if sampling.seed < 0 else sampling.seed & 0xFFFFFFFF
    chain.add("xtc", sampling.xtc_probability, sampling.xtc_threshold, sampling.min_keep, seed)


def _temperature(chain: Sampler, sampling: Sampling, _model: Model, _context: int) -> None:
    if sampling.dynatemp_range > 0:
        chain.add(
            "temp_ext", sampling.temperature, sampling.dynatemp_range, sampling.dynatemp_exponent
        )
    else:
        chain.add("temp", sampling.temperature)


_ADD: Mapping[str, Adds] = {
    "penalties": _penalties,
    "dry": _dry,
    "top_n_sigma": lambda chain, sampling, *_: chain.add("top_n_sigma", sampling.top_n_sigma),
    "top_k": lambda chain, sampling, *_: chain.add("top_k", sampling.top_k),
    "typ_p": lambda chain, sampling, *_: chain.add(
        "typical", sampling.typical_p, max(sampling.min_keep, 1)
    ),
    "top_p": lambda chain, sampling, *_: chain.add(
        "top_p", sampling.top_p, max(sampling.min_keep, 1)
    ),
    "min_p": lambda chain, sampling, *_: chain.add(
        "min_p", sampling.min_p, max(sampling.min_keep, 1)
    ),
    "xtc": _xtc,
    "temperature": _temperature,
    "infill": lambda chain, _sampling, model, _context: chain.add("infill", model.vocab),
}
