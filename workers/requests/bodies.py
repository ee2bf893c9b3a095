"""OpenAI's request bodies: their structs, decoding, checks, and conversion of prompts to tokens."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from workers.errors import ApiError
from workers.llama.model import Model
from workers.requests.sampling import SamplingOptions, check_lists, check_numbers

T = TypeVar("T")
Texts = list[str | int | list[int]]
"""Several texts, the tokens of one text, or the tokens of several texts."""


class StreamOptions(msgspec.Struct):
    """`stream_options` of OpenAI's API."""

    include_usage: bool | None = None


class LoraScale(msgspec.Struct):
    """A member of llama-server's `lora`."""

    id: int
    scale: float | int


class Generation(SamplingOptions, kw_only=True):
    """Fields that chat and text completions share. None: the server's default."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    n: int | None = None
    ignore_eos: bool | None = None
    user: str | None = None
    lora: list[LoraScale] | None = None
    """The adapters to use, by their ids in /lora-adapters; the others are not used."""
    deterministic: bool | None = None
    """True: greedy, and bit for bit the same, independent of other requests."""
    cache_prompt: bool | None = None
    """False: the request neither reads nor fills the prefix cache."""
    grammar: str | None = None
    json_schema: Any = msgspec.UNSET
    response_format: dict[str, Any] | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def token_limit(self) -> int | None:
        """Tokens to generate at most; None: to the end of the context."""
        return self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """True if a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Generation, kw_only=True):
    """The body of /v1/chat/completions and /apply-template."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    @property
    def alternatives(self) -> int | None:
        """Number of likely tokens to report beside each token; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def token_limit(self) -> int | None:
        """Tokens to generate at most. `max_completion_tokens`, the newer name, has precedence."""
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
    """Decode the body as a `kind`. Raises ApiError 400 with the reason and the field."""
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


def check(request: Generation) -> None:
    """Raise ApiError 400 for values out of range and for unsupported options."""
    check_numbers(request)
    check_lists(request)
    if isinstance(request, ChatRequest):
        if request.top_logprobs is not None and not request.logprobs:
            raise ApiError(400, "`top_logprobs` needs `logprobs: true`.", param="top_logprobs")
    elif isinstance(request, CompletionRequest) and request.best_of not in (
        None,
        request.n or 1,
    ):
        raise ApiError(
            400, "`best_of` must be `n`: this worker returns all of its answers.", param="best_of"
        )


def token_lists(
    model: Model, given: object, param: str, most: int | None = None
) -> list[list[int]]:
    """Return one list of tokens for each text in `given`. Raises ApiError 400.

    `given` is a text, the tokens of a text (mixed with texts, as in llama-server), or a list of at
    most `most` of these.
    """
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
        raise ApiError(400, f"`{param}` has a token id that the model does not have.", param=param)
    return tokens


def _part(model: Model, part: Any, param: str, *, first: bool) -> list[int]:
    if isinstance(part, str):
        return model.tokenize(part, add_special=first, parse_special=True)
    if isinstance(part, bool) or not isinstance(part, int):
        raise ApiError(400, f"`{param}` must be text or tokens.", param=param)
    return [part]
