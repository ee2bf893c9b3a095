"""Prompts and inputs, however a body writes them, as tokens."""

from __future__ import annotations

from typing import Any

from workers.errors import ApiError
from workers.worker import Worker


async def token_lists(worker: Worker, given: object, param: str) -> list[list[int]]:
    """One list of tokens for each text that `given` names: a text, a text's tokens (and texts
    among them, as llama-server allows), or a list of such. Raises ApiError 400."""
    if not isinstance(given, list):
        return [await _tokens(worker, given, param)]
    if not given:
        raise ApiError(400, f"`{param}` must not be empty.", param=param)
    if any(isinstance(item, int) for item in given):
        return [await _tokens(worker, given, param)]
    return [await _tokens(worker, item, param) for item in given]


async def _tokens(worker: Worker, text: object, param: str) -> list[int]:
    if isinstance(text, str):
        return await worker.tokenize(text)
    if not isinstance(text, list):
        raise ApiError(400, f"`{param}` must be text or tokens.", param=param)
    tokens: list[int] = []
    limit = worker.model.n_vocab
    for number, part in enumerate(text):
        tokens += await _part(worker, part, param, first=number == 0)
    if not all(0 <= token < limit for token in tokens):
        raise ApiError(400, f"`{param}` has a token the model does not.", param=param)
    return tokens


async def _part(worker: Worker, part: Any, param: str, *, first: bool) -> list[int]:
    if isinstance(part, str):
        return await worker.tokenize(part, add_special=first)
    if isinstance(part, bool) or not isinstance(part, int):
        raise ApiError(400, f"`{param}` must be text or tokens.", param=param)
    return [part]
