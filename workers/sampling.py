"""How the next token is drawn: a request's wishes, and the chain of samplers they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from workers.binding import ANY_SEED, Model, Sampler


@dataclass(frozen=True)
class Sampling:
    """Sampler settings, named and defaulted as llama-server has them."""

    temperature: float = 0.8
    top_k: int = 40
    """0 or below: off."""
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    """Below 0: off."""
    repeat_last_n: int = 64
    """Tokens looked back on by the penalties; 0: none, -1: the whole context."""
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = -1
    """-1: drawn."""
    logit_bias: dict[int, float] = field(default_factory=dict)

    @property
    def penalizes(self) -> bool:
        """Whether past tokens matter."""
        wanted = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty)
        return self.repeat_last_n != 0 and wanted != (1.0, 0.0, 0.0)

    @property
    def greedy(self) -> bool:
        """Whether simply the likeliest token is taken: no state, so one chain serves all."""
        return self.temperature <= 0 and not self.penalizes and not self.logit_bias


def make_sampler(wish: Sampling, model: Model, context: int, prompt: Sequence[int]) -> Sampler:
    """The chain for `wish`, in llama-server's order, having seen the end of `prompt`.

    `context` is what -1 means for `repeat_last_n`.
    """
    chain = Sampler()
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
    if wish.top_n_sigma >= 0:
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
