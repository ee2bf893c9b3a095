"""OpenAI's response bodies, and the chunks of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from workers.answers import Part
from workers.resuming import Birth
from workers.sequence import Finished, Timings
from workers.token_log import Told, text_logprobs


@dataclass(frozen=True)
class Echo:
    """A prompt as it is told back."""

    text: str
    told: list[Told]


NO_ECHO = Echo("", [])
DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.encode


def usage(timings: Timings) -> dict[str, object]:
    """Token counts as OpenAI names them."""
    return {
        "prompt_tokens": timings.prompt_tokens,
        "completion_tokens": timings.predicted_tokens,
        "total_tokens": timings.prompt_tokens + timings.predicted_tokens,
        "prompt_tokens_details": {"cached_tokens": timings.cached_tokens},
    }


def llama_timings(timings: Timings) -> dict[str, object]:
    """`timings` as llama-server names them; times in milliseconds."""
    prompt = timings.prompt_tokens - timings.cached_tokens
    predicted = timings.predicted_tokens
    prompt_ms, predicted_ms = timings.prompt_seconds * 1e3, timings.predicted_seconds * 1e3
    guesses = {"draft_n": timings.guessed, "draft_n_accepted": timings.right}
    return {
        "cache_n": timings.cached_tokens,
        "prompt_n": prompt,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / max(prompt, 1),
        "prompt_per_second": prompt / prompt_ms * 1e3 if prompt_ms else 0.0,
        "predicted_n": predicted,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / max(predicted, 1),
        "predicted_per_second": predicted / predicted_ms * 1e3 if predicted_ms else 0.0,
        **(guesses if timings.guessed else {}),
    }


class Shape:
    """What distinguishes the responses of an endpoint; one for each request.

    The bytes around a chunk's text are encoded once, so a token costs its own text only.
    """

    prefix: str
    whole: str
    part: str

    def __init__(self, model: str, count: int, birth: Birth, *, with_usage: bool = False) -> None:
        """For so many answers; `with_usage`: a stream ends with a chunk that tells it."""
        self._head: dict[str, object] = {
            "id": f"{self.prefix}-{birth.name}",
            "created": birth.created,
            "model": model,
        }
        self._count = count
        self._with_usage = with_usage
        self._around: dict[int, tuple[bytes, bytes]] = {}

    def response(self, parts: list[Part], timings: Timings) -> dict[str, object]:
        """The body of a response that was not streamed: a part for each answer."""
        return {
            **self._head,
            "object": self.whole,
            "choices": [self._choice(part, _ended(part).reason) for part in parts],
            "usage": usage(timings),
            "timings": llama_timings(timings),
        }

    def opening(self) -> bytes:
        """What a stream begins with."""
        return b""

    def news(self, part: Part) -> bytes:
        """A stream's chunks for a part: its text, and the reason where it ends."""
        written = b""
        if part.told:
            written = self._event(self._piece(part.index, part.text, part.told))
        elif part.text:
            before, after = self._around.get(part.index) or self._surroundings(part.index)
            written = before + _encode(part.text) + after
        if part.end is not None:
            written += self._last(part.index, part.end.reason, part.end.timings)
        return written

    def closing(self, timings: Timings) -> bytes:
        """A stream's last chunks: the usage if wished, and the end mark."""
        if not self._with_usage:
            return DONE
        body = {**self._head, "object": self.part, "choices": [], "usage": usage(timings)}
        return _event({**body, "timings": llama_timings(timings)}) + DONE

    def _last(self, index: int, reason: str, timings: Timings) -> bytes:
        choice = {**self._piece(index, None, []), "finish_reason": reason}
        return self._event(choice, {} if self._with_usage else {"timings": llama_timings(timings)})

    def _surroundings(self, index: int) -> tuple[bytes, bytes]:
        """What comes before and after the text of a plain chunk."""
        mark = "\x00"
        before, after = self._event(self._piece(index, mark, [])).split(_encode(mark))
        self._around[index] = before, after
        return before, after

    def _event(self, choice: dict[str, Any], more: dict[str, object] | None = None) -> bytes:
        """A chunk with one choice."""
        return _event({**self._head, "object": self.part, "choices": [choice], **(more or {})})

    def _choice(self, part: Part, reason: str) -> dict[str, Any]:
        raise NotImplementedError

    def _piece(self, index: int, text: str | None, told: list[Told]) -> dict[str, Any]:
        raise NotImplementedError


class CompletionShape(Shape):
    """Responses of /v1/completions."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def __init__(
        self,
        model: str,
        count: int,
        birth: Birth,
        *,
        with_usage: bool = False,
        echo: Sequence[Echo] | None = None,
    ) -> None:
        """`echo`: for each answer, the prompt that comes before it."""
        super().__init__(model, count, birth, with_usage=with_usage)
        self._echo = echo

    def opening(self) -> bytes:
        """The prompts, if they are to be there."""
        if self._echo is None:
            return b""
        return b"".join(
            self._event(
                {
                    "index": index,
                    "text": echo.text,
                    "logprobs": text_logprobs(echo.told) if echo.told else None,
                    "finish_reason": None,
                },
            )
            for index, echo in enumerate(self._echo)
        )

    def _choice(self, part: Part, reason: str) -> dict[str, Any]:
        echo = NO_ECHO if self._echo is None else self._echo[part.index]
        told = [
            *echo.told,
            *(replace(one, offset=one.offset + len(echo.text)) for one in part.told),
        ]
        return {
            "index": part.index,
            "text": echo.text + part.text,
            "logprobs": text_logprobs(told) if told else None,
            "finish_reason": reason,
        }

    def _piece(self, index: int, text: str | None, told: list[Told]) -> dict[str, Any]:
        start = 0 if self._echo is None else len(self._echo[index].text)
        return {
            "index": index,
            "text": text or "",
            "logprobs": text_logprobs(told, start) if told else None,
            "finish_reason": None,
        }


def _ended(part: Part) -> Finished:
    if part.end is None:
        raise RuntimeError("an answer that was waited for has no end")
    return part.end


def error_event(message: str) -> bytes:
    """What ends a stream that broke: an error, and no end mark after it."""
    error = {"message": message, "type": "server_error", "param": None, "code": None}
    return _event({"error": error})


def _event(body: dict[str, object]) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"
