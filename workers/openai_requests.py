"""OpenAI's request bodies: decoded, checked, and turned into what the engine understands."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from workers.errors import ApiError
from workers.settings import Sampling

Number = float | int
T = TypeVar("T")
Texts = list[str | int | list[int]]
"""Texts, or one text's tokens, or several texts' tokens."""


class StreamOptions(msgspec.Struct):
    """`stream_options` of OpenAI's API."""

    include_usage: bool | None = None


class Generation(msgspec.Struct, kw_only=True):
    """What chat and text completions have in common. None: the server's default."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    n: int | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: int | None = None
    min_p: Number | None = None
    typical_p: Number | None = None
    top_n_sigma: Number | None = None
    repeat_penalty: Number | None = None
    repeat_last_n: int | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: dict[str, Number | bool] | list[tuple[int, Number | bool]] | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None
    """False: nothing of the cache is used for it, and nothing of it is kept."""
    grammar: str | None = None
    json_schema: Any = msgspec.UNSET
    response_format: dict[str, Any] | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings, however they were written."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def token_limit(self) -> int | None:
        """Tokens to generate at most; None: to the end of the context."""
        return self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that tells the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Generation, kw_only=True):
    """The body of /v1/chat/completions and /apply-template."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    logprobs: bool | None = None
    tools: list[Any] | None = None

    @property
    def token_limit(self) -> int | None:
        """`max_completion_tokens` is the newer name and goes first."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(Generation, kw_only=True):
    """The body of /v1/completions."""

    prompt: str | Texts
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The body of /v1/embeddings."""

    input: str | Texts
    model: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None


def decode(body: bytes, kind: type[T]) -> T:
    """The body as a `kind`. Raises ApiError 400 that says what is wrong and where."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        missing = re.search(r"missing required field `(\w+)`", what)
        param = missing[1] if missing else re.sub(r"\[(\.\.\.|\d+)\]|`$", "", where).lstrip(".")
        place = f" at `{param}`" if param and not missing else ""
        raise ApiError(400, f"{what}{place}.", param=param or None) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.") from error


AT_LEAST = {
    "temperature": 0, "top_p": 0, "min_p": 0, "typical_p": 0, "repeat_last_n": -1,
    "max_tokens": 0, "max_completion_tokens": 0,
}  # fmt: skip
AT_MOST = {"top_p": 1, "min_p": 1, "typical_p": 1}
LARGEST_INT = 2**31 - 1


def check(request: Generation) -> None:
    """Raises ApiError 400 for values that mean nothing, and for what this worker can't do."""
    for name in request.__struct_fields__:
        value = getattr(request, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if value < AT_LEAST.get(name, value):
            raise ApiError(400, f"`{name}` must be {AT_LEAST[name]} or more.", param=name)
        if value > AT_MOST.get(name, value):
            raise ApiError(400, f"`{name}` must be {AT_MOST[name]} or less.", param=name)
        if name != "seed" and abs(value) > LARGEST_INT:
            raise ApiError(400, f"`{name}` is too large.", param=name)
    if request.repeat_penalty is not None and request.repeat_penalty <= 0:
        raise ApiError(400, "`repeat_penalty` must be above 0.", param="repeat_penalty")
    if request.n not in (None, 1):
        raise ApiError(400, "`n` must be 1: this worker gives one choice a request.", param="n")
    _check_unsupported(request)


def _check_unsupported(request: Generation) -> None:
    """What would otherwise be left out in silence."""
    unsupported: dict[str, object] = {}
    if isinstance(request, ChatRequest):
        unsupported = {"logprobs": request.logprobs, "tools": request.tools}
    elif isinstance(request, CompletionRequest):
        unsupported = {
            "logprobs": request.logprobs,
            "echo": request.echo,
            "best_of": request.best_of not in (None, 1),
            "suffix": request.suffix,
        }
    for name, wanted in unsupported.items():
        if wanted:
            raise ApiError(400, f"`{name}` is not supported by this worker.", param=name)


def check_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates expect them: text parts joined. Raises ApiError 400."""
    if not messages:
        raise ApiError(400, "`messages` must not be empty.", param="messages")
    checked = []
    for message in messages:
        if not isinstance(message.get("role"), str):
            raise ApiError(400, "Each message must have a `role`.", param="messages")
        checked.append({**message, "content": _text(message.get("content"))})
    return checked


def _text(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ApiError(400, f"This model reads text only, not {kind!r}.", param="messages")
        if not isinstance(part.get("text"), str):
            raise ApiError(400, "A text part must have a `text`.", param="messages")
        texts.append(part["text"])
    return "\n".join(texts)


def sampling_of(request: Generation, defaults: Sampling, n_vocab: int) -> Sampling:
    """The request's sampler settings over the server's. Raises ApiError 400."""
    names = (
        "temperature", "top_p", "top_k", "min_p", "typical_p", "top_n_sigma", "seed",
        "repeat_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty",
    )  # fmt: skip
    wished = {name: value for name in names if (value := getattr(request, name)) is not None}
    return replace(defaults, **wished, logit_bias=_bias(request, n_vocab))


def _bias(request: Generation, n_vocab: int) -> dict[int, float]:
    """`logit_bias` as numbers; `false` means never, as llama-server has it."""
    given = request.logit_bias or {}
    pairs = given.items() if isinstance(given, dict) else given
    bias = {}
    for key, value in pairs:
        token = int(key) if isinstance(key, int) or key.isdecimal() else -1
        if not 0 <= token < n_vocab:
            raise ApiError(
                400, f"`logit_bias` names no token of this model: {key!r}.", param="logit_bias"
            )
        bias[token] = -math.inf if value is False else float(value)
    return bias
