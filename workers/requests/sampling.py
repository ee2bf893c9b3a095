"""A request's sampling parameters, checked, and merged over the server's defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import msgspec

from workers.errors import ApiError
from workers.settings import SamplerNameError, Sampling, sampler_order

MAX_DIGITS = 9
"""Digits of a number in text form. Python rejects more than some thousand with an error."""


def parse_natural(text: str) -> int | None:
    """Return the number in `text`; None unless it is at most `MAX_DIGITS` ASCII digits."""
    valid = text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS
    return int(text) if valid else None


Number = float | int
Biases = dict[str, Number | bool] | list[tuple[int | str, Number | bool]]
"""Biases by token id, or in a list also by text for each of its tokens. `false` bans a token."""
MAX_INT = 2**31 - 1
MAX_LENGTHS = {"stop": 128, "dry_sequence_breakers": 32, "samplers": 64}
"""Members of lists. Each stop string is searched after every token; for each DRY breaker llama.cpp
scans the vocabulary, 1.7 ms for 32,000 tokens, while all streams wait."""
AT_LEAST = {
    "temperature": 0, "top_p": 0, "min_p": 0, "typical_p": 0, "repeat_last_n": -1, "min_keep": 0,
    "dynatemp_range": 0, "xtc_probability": 0, "xtc_threshold": 0, "dry_multiplier": 0,
    "dry_penalty_last_n": -1, "mirostat": 0, "mirostat_tau": 0, "mirostat_eta": 0,
    "max_tokens": 0, "max_completion_tokens": 0, "n": 1, "logprobs": 0, "top_logprobs": 0,
    "n_predict": -1, "n_probs": 0,
}  # fmt: skip
AT_MOST = {
    "top_p": 1, "min_p": 1, "typical_p": 1, "xtc_probability": 1, "mirostat": 2,
    "adaptive_target": 1, "adaptive_decay": 0.99, "n": 128, "logprobs": 20, "top_logprobs": 20,
    "n_probs": 1000,
}  # fmt: skip


class SamplingOptions(msgspec.Struct, kw_only=True):
    """The samplers' parameters in a request's body. None: the server's default."""

    seed: int | None = None
    temperature: Number | None = None
    dynatemp_range: Number | None = None
    dynatemp_exponent: Number | None = None
    top_k: int | None = None
    top_p: Number | None = None
    min_p: Number | None = None
    typical_p: Number | None = None
    top_n_sigma: Number | None = None
    min_keep: int | None = None
    xtc_probability: Number | None = None
    xtc_threshold: Number | None = None
    repeat_penalty: Number | None = None
    repeat_last_n: int | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    dry_multiplier: Number | None = None
    dry_base: Number | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    mirostat: int | None = None
    mirostat_tau: Number | None = None
    mirostat_eta: Number | None = None
    adaptive_target: Number | None = None
    adaptive_decay: Number | None = None
    samplers: list[str] | str | None = None
    logit_bias: Biases | None = None


class Vocabulary(Protocol):
    """The part of a model that checks logit biases."""

    n_vocab: int

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the tokens of `text`."""


def check_numbers(request: msgspec.Struct) -> None:
    """Raise ApiError 400 for numbers out of range."""
    for name in request.__struct_fields__:
        value = getattr(request, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if value < AT_LEAST.get(name, value):
            raise ApiError(400, f"`{name}` must be {AT_LEAST[name]} or more.", param=name)
        if value > AT_MOST.get(name, value):
            raise ApiError(400, f"`{name}` must be {AT_MOST[name]} or less.", param=name)
        if name != "seed" and abs(value) > MAX_INT:
            raise ApiError(400, f"`{name}` is too large.", param=name)


def check_lists(request: msgspec.Struct) -> None:
    """Raise ApiError 400 for lists that would take long enough to delay other requests."""
    for name, most in MAX_LENGTHS.items():
        value = getattr(request, name, None)
        single = name == "stop" and isinstance(value, str)
        if value is not None and not single and len(value) > most:
            raise ApiError(400, f"`{name}` has more than {most} members.", param=name)


def sampling_of(request: SamplingOptions, defaults: Sampling, vocabulary: Vocabulary) -> Sampling:
    """Return the request's sampler settings over the server's. Raises ApiError 400."""
    if request.repeat_penalty is not None and request.repeat_penalty <= 0:
        raise ApiError(400, "`repeat_penalty` must be above 0.", param="repeat_penalty")
    options = {
        name: value
        for name in SamplingOptions.__struct_fields__
        if (value := getattr(request, name)) is not None
    }
    if request.logit_bias is None:
        options["logit_bias"] = {**defaults.logit_bias}
    else:
        options["logit_bias"] = _bias(request.logit_bias, vocabulary)
    if "dry_sequence_breakers" in options:
        options["dry_sequence_breakers"] = tuple(options["dry_sequence_breakers"])
    if request.samplers is not None:
        try:
            options["samplers"] = sampler_order(request.samplers)
        except SamplerNameError as error:
            raise ApiError(400, str(error), param="samplers") from error
    return replace(defaults, **options)


def _bias(given: Biases, vocabulary: Vocabulary) -> dict[int, float]:
    if len(given) > vocabulary.n_vocab:
        raise ApiError(
            400, "`logit_bias` has more members than the model has tokens.", param="logit_bias"
        )
    bias = {}
    tokens: Sequence[int | None]
    pairs = given.items() if isinstance(given, dict) else given
    for key, value in pairs:
        if isinstance(key, str) and isinstance(given, list):
            tokens = vocabulary.tokenize(key, add_special=False, parse_special=False)
        else:
            tokens = [key if isinstance(key, int) else parse_natural(key)]
        for token in tokens:
            if token is None or not 0 <= token < vocabulary.n_vocab:
                raise ApiError(
                    400,
                    f"`logit_bias` names no token of this model: {key!r}.",
                    param="logit_bias",
                )
            bias[token] = -math.inf if value is False else float(value)
    return bias
