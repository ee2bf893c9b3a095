"""OpenAI's response bodies, and the chunks of a stream."""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec

from workers.sequence import Finished, Timings

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

    def __init__(self, model: str) -> None:
        self._head: dict[str, object] = {
            "id": f"{self.prefix}-{os.urandom(16).hex()}",
            "created": int(time.time()),
            "model": model,
        }
        mark = "\x00"
        before, after = self._chunk(mark, None).split(_encode(mark))
        self._before, self._after = before, after

    def response(self, text: str, end: Finished) -> dict[str, object]:
        """The body of a response that was not streamed."""
        return {
            **self._head,
            "object": self.whole,
            "choices": [self._choice(text, end.reason)],
            "usage": usage(end.timings),
            "timings": llama_timings(end.timings),
        }

    def opening(self) -> bytes:
        """What a stream begins with."""
        return b""

    def chunk(self, text: str) -> bytes:
        """A stream's chunk with more text."""
        return self._before + _encode(text) + self._after

    def closing(self, end: Finished, *, with_usage: bool) -> bytes:
        """A stream's last chunks: the reason, the usage if wished, and the end mark."""
        timings: dict[str, object] = {"timings": llama_timings(end.timings)}
        last = self._chunk(None, end.reason, {} if with_usage else timings)
        if with_usage:
            body = {**self._head, "object": self.part, "choices": [], "usage": usage(end.timings)}
            last += _event({**body, **timings})
        return last + DONE

    def _chunk(
        self, text: str | None, reason: str | None, more: dict[str, object] | None = None
    ) -> bytes:
        choice = self._piece(text, reason)
        return _event({**self._head, "object": self.part, "choices": [choice], **(more or {})})

    def _choice(self, text: str, reason: str) -> dict[str, Any]:
        raise NotImplementedError

    def _piece(self, text: str | None, reason: str | None) -> dict[str, Any]:
        raise NotImplementedError


class ChatShape(Shape):
    """Responses of /v1/chat/completions."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> bytes:
        """The role comes first, and alone."""
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return _event({**self._head, "object": self.part, "choices": [choice]})

    def _choice(self, text: str, reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}

    def _piece(self, text: str | None, reason: str | None) -> dict[str, Any]:
        delta = {} if text is None else {"content": text}
        return {"index": 0, "delta": delta, "finish_reason": reason}


class CompletionShape(Shape):
    """Responses of /v1/completions."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def _choice(self, text: str, reason: str) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}

    def _piece(self, text: str | None, reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text or "", "logprobs": None, "finish_reason": reason}


def error_event(message: str) -> bytes:
    """What ends a stream that broke: an error, and no end mark after it."""
    error = {"message": message, "type": "server_error", "param": None, "code": None}
    return _event({"error": error})


def _event(body: dict[str, object]) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"
