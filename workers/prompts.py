"""Prompts and inputs, however a body writes them, as tokens."""

from __future__ import annotations

from typing import Any

from workers.binding import Model
from workers.errors import ApiError


def token_lists(
    model: Model, given: object, param: str, most: int | None = None
) -> list[list[int]]:
    """One list of tokens for each text that `given` names: a text, a text's tokens (and texts
    among them, as llama-server allows), or a list of such, `most` of them. Raises ApiError 400."""
    if not isinstance(given, list):
        return [_tokens(model, given, param)]
    if not given:
        raise ApiError(400, f"`{param}` must not be empty.", param=param)
    if any(isinstance(item, int) for item in given):
        return [_tokens(model, given, param)]
    if most is not None and len(given) > most:
        raise ApiError(400, f"`{param}` has more than {most} texts.", param=param)
    return [_tokens(model, item, param) for item in given]


def _tokens(model: Model, text: object, param: str) -> list[int]:
    if isinstance(text, str):
        return model.tokenize(text, add_special=True, parse_special=True)
    if not isinstance(text, list):
        raise ApiError(400, f"`{param}` must be text or tokens.", param=param)
    tokens: list[int] = []
    for number, part in enumerate(text):
        tokens += _part(model, part, param, first=number == 0)
    if not all(0 <= token < model.n_vocab for token in tokens):
        raise ApiError(400, f"`{param}` has a token the model does not.", param=param)
    return tokens


def _part(model: Model, part: Any, param: str, *, first: bool) -> list[int]:
    if isinstance(part, str):
        return model.tokenize(part, add_special=first, parse_special=True)
    if isinstance(part, bool) or not isinstance(part, int):
        raise ApiError(400, f"`{param}` must be text or tokens.", param=param)
    return [part]
