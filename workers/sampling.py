"""How the next token is drawn: the chain of samplers that a request's wishes make."""

from __future__ import annotations

from collections.abc import Sequence

from workers.binding import ANY_SEED, Model
from workers.binding_sampler import Guide, GuidedSampler, Sampler
from workers.settings import Sampling


def make_sampler(
    wish: Sampling, model: Model, context: int, prompt: Sequence[int], guide: Guide | None = None
) -> Sampler:
    """The chain for `wish`, in llama-server's order, having seen the end of `prompt`.

    `context` is what -1 means for `repeat_last_n`. With a `guide`, what is drawn follows it.
    """
    chain = Sampler() if guide is None else GuidedSampler(model, guide)
    if wish.logit_bias:
        chain.add_logit_bias(model.n_vocab, wish.logit_bias)
    if wish.penalizes:
        last = context if wish.repeat_last_n < 0 else wish.repeat_last_n
        chain.add(
            "penalties",
            model.n_vocab,
            last,
            wish.repeat_penalty,
            wish.frequency_penalty,
            wish.presence_penalty,
        )
        for token in prompt[-last:]:
            chain.accept(token)
    if wish.temperature <= 0:
        chain.add("greedy")
        return chain
    if wish.top_n_sigma > 0:
        chain.add("top_n_sigma", wish.top_n_sigma)
    if wish.top_k > 0:
        chain.add("top_k", wish.top_k)
    if wish.typical_p < 1:
        chain.add("typical", wish.typical_p, 1)
    if wish.top_p < 1:
        chain.add("top_p", wish.top_p, 1)
    if wish.min_p > 0:
        chain.add("min_p", wish.min_p, 1)
    if wish.temperature != 1:
        chain.add("temp", wish.temperature)
    chain.add("dist", ANY_SEED if wish.seed < 0 else wish.seed & 0xFFFFFFFF)
    return chain
