"""Response bodies and stream chunks of /v1/completions and /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from workers.api.answers import AnswerDelta
from workers.api.logprobs import TokenLogprobs, chat_logprobs, text_logprobs
from workers.chat.answer_parts import ArgumentsPart, ContentPart, Piece, ReasoningPart, ToolCall
from workers.chat.output_parser import OutputParser
from workers.chat.tools import new_call_id
from workers.engine.metrics import Timings
from workers.engine.sequence import Finished
from workers.requests.resume import ResponseIdentity


@dataclass(frozen=True)
class Echo:
    """A prompt that the response repeats before the answer."""

    text: str
    logprobs: list[TokenLogprobs]


NO_ECHO = Echo("", [])
DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.encode


def usage(timings: Timings) -> dict[str, object]:
    """Return token counts in OpenAI's format."""
    return {
        "prompt_tokens": timings.prompt_tokens,
        "completion_tokens": timings.predicted_tokens,
        "total_tokens": timings.prompt_tokens + timings.predicted_tokens,
        "prompt_tokens_details": {"cached_tokens": timings.cached_tokens},
    }


def llama_timings(timings: Timings) -> dict[str, object]:
    """Return `timings` in llama-server's format; times in milliseconds."""
    prompt = timings.prompt_tokens - timings.cached_tokens
    predicted = timings.predicted_tokens
    prompt_ms, predicted_ms = timings.prompt_seconds * 1e3, timings.predicted_seconds * 1e3
    drafts = {"draft_n": timings.draft_tokens, "draft_n_accepted": timings.accepted_tokens}
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
        **(drafts if timings.draft_tokens else {}),
    }


class ResponseShape:
    """Response bodies and chunks of one request; a subclass for each endpoint.

    The bytes around a chunk's text are encoded once, so a token costs the encoding of its text.
    """

    prefix: str
    whole: str
    part: str

    def __init__(
        self, model: str, count: int, identity: ResponseIdentity, *, with_usage: bool = False
    ) -> None:
        """Take the number of answers; `with_usage`: a stream ends with a usage chunk."""
        self._head: dict[str, object] = {
            "id": f"{self.prefix}-{identity.name}",
            "created": identity.created,
            "model": model,
        }
        self._count = count
        self._with_usage = with_usage
        self._around: dict[int, tuple[bytes, bytes]] = {}

    def response(self, parts: list[AnswerDelta], timings: Timings) -> dict[str, object]:
        """Return the body of a response that is not streamed, given a part for each answer."""
        return {
            **self._head,
            "object": self.whole,
            "choices": [self._choice(part, _ended(part).reason) for part in parts],
            "usage": usage(timings),
            "timings": llama_timings(timings),
        }

    def opening(self) -> bytes:
        """Return the opening events of a stream."""
        return b""

    def update(self, part: AnswerDelta) -> bytes:
        """Return the chunks for a part: its text, and the finish reason if the answer ended."""
        written = b""
        if part.logprobs:
            written = self._event(self._piece(part.index, part.text, part.logprobs))
        elif part.text:
            before, after = self._around.get(part.index) or self._surroundings(part.index)
            written = before + _encode(part.text) + after
        if part.end is not None:
            written += self._last(part.index, part.end.reason, part.end.timings)
        return written

    def closing(self, timings: Timings) -> bytes:
        """Return the last events of a stream: the usage if requested, then `[DONE]`."""
        if not self._with_usage:
            return DONE
        body = {**self._head, "object": self.part, "choices": [], "usage": usage(timings)}
        return _event({**body, "timings": llama_timings(timings)}) + DONE

    def _last(self, index: int, reason: str, timings: Timings) -> bytes:
        choice = {**self._piece(index, None, []), "finish_reason": reason}
        return self._event(choice, {} if self._with_usage else {"timings": llama_timings(timings)})

    def _surroundings(self, index: int) -> tuple[bytes, bytes]:
        """Return the bytes before and after the text of a chunk."""
        marker = "\x00"
        before, after = self._event(self._piece(index, marker, [])).split(_encode(marker))
        self._around[index] = before, after
        return before, after

    def _event(self, choice: dict[str, Any], more: dict[str, object] | None = None) -> bytes:
        """Return a chunk with one choice."""
        return _event({**self._head, "object": self.part, "choices": [choice], **(more or {})})

    def _choice(self, part: AnswerDelta, reason: str) -> dict[str, Any]:
        raise NotImplementedError

    def _piece(self, index: int, text: str | None, logprobs: list[TokenLogprobs]) -> dict[str, Any]:
        raise NotImplementedError


class CompletionResponses(ResponseShape):
    """Response bodies and chunks of /v1/completions."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def __init__(
        self,
        model: str,
        count: int,
        identity: ResponseIdentity,
        *,
        with_usage: bool = False,
        echo: Sequence[Echo] | None = None,
    ) -> None:
        """Take in `echo` the prompt to repeat before each answer; None: repeat no prompts."""
        super().__init__(model, count, identity, with_usage=with_usage)
        self._echo = echo

    def opening(self) -> bytes:
        """Return the echoed prompts, if there are any."""
        if self._echo is None:
            return b""
        return b"".join(
            self._event(
                {
                    "index": index,
                    "text": echo.text,
                    "logprobs": text_logprobs(echo.logprobs) if echo.logprobs else None,
                    "finish_reason": None,
                },
            )
            for index, echo in enumerate(self._echo)
        )

    def _choice(self, part: AnswerDelta, reason: str) -> dict[str, Any]:
        echo = NO_ECHO if self._echo is None else self._echo[part.index]
        logprobs = [
            *echo.logprobs,
            *(replace(one, offset=one.offset + len(echo.text)) for one in part.logprobs),
        ]
        return {
            "index": part.index,
            "text": echo.text + part.text,
            "logprobs": text_logprobs(logprobs) if logprobs else None,
            "finish_reason": reason,
        }

    def _piece(self, index: int, text: str | None, logprobs: list[TokenLogprobs]) -> dict[str, Any]:
        start = 0 if self._echo is None else len(self._echo[index].text)
        return {
            "index": index,
            "text": text or "",
            "logprobs": text_logprobs(logprobs, start) if logprobs else None,
            "finish_reason": None,
        }


def _ended(part: AnswerDelta) -> Finished:
    if part.end is None:
        raise RuntimeError("the answer has not ended")
    return part.end


def error_event(message: str) -> bytes:
    """Return the last event of a stream that failed: an error, without `[DONE]` after it."""
    error = {"message": message, "type": "server_error", "param": None, "code": None}
    return _event({"error": error})


def _event(body: dict[str, object]) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"


class ChatResponses(ResponseShape):
    """Response bodies and chunks of /v1/chat/completions: content, reasoning and tool calls."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(
        self,
        model: str,
        parsers: Sequence[OutputParser],
        identity: ResponseIdentity,
        *,
        with_usage: bool = False,
    ) -> None:
        """Take an output parser for each answer."""
        super().__init__(model, len(parsers), identity, with_usage=with_usage)
        self._parsers = parsers
        self._calls = [0] * len(parsers)
        self._pending: list[list[TokenLogprobs]] = [[] for _ in parsers]
        """Tokens of text that the parsers hold back."""

    def opening(self) -> bytes:
        """Return a chunk with only the role for each answer."""
        return b"".join(
            self._chunk(index, {"role": "assistant", "content": ""}, [])
            for index in range(self._count)
        )

    def update(self, part: AnswerDelta) -> bytes:
        """Return the chunks for a part: content, reasoning, tool calls, and the finish reason."""
        parser = self._parsers[part.index]
        if parser.passthrough:
            return super().update(part)
        pieces = parser.feed(part.text)
        if part.end is not None:
            pieces += parser.finish()
        logprobs = self._pending[part.index] + part.logprobs
        written = []
        for piece in pieces:
            written.append(self._chunk(part.index, self._delta(part.index, piece), logprobs))
            logprobs = []
        if part.end is not None:
            if logprobs:
                written.append(self._chunk(part.index, {}, logprobs))
            written.append(self._last(part.index, part.end.reason, part.end.timings))
        self._pending[part.index] = logprobs
        return b"".join(written)

    def _last(self, index: int, reason: str, timings: Timings) -> bytes:
        return super()._last(index, _reason(reason, self._calls[index]), timings)

    def _delta(self, index: int, piece: Piece) -> dict[str, Any]:
        if isinstance(piece, ContentPart):
            return {"content": piece.text}
        if isinstance(piece, ReasoningPart):
            return {"reasoning_content": piece.text}
        if isinstance(piece, ToolCall):
            self._calls[index] += 1
            call = {"index": self._calls[index] - 1, **_call(piece.name, "")}
            return {"tool_calls": [call]}
        call = {"index": self._calls[index] - 1, "function": {"arguments": piece.text}}
        return {"tool_calls": [call]}

    def _choice(self, part: AnswerDelta, reason: str) -> dict[str, Any]:
        parser = self._parsers[part.index]
        message, calls = _message(parser.feed(part.text) + parser.finish())
        return {
            "index": part.index,
            "message": message,
            "logprobs": chat_logprobs(part.logprobs) if part.logprobs else None,
            "finish_reason": _reason(reason, calls),
        }

    def _piece(self, index: int, text: str | None, logprobs: list[TokenLogprobs]) -> dict[str, Any]:
        return _choice_of(index, {} if text is None else {"content": text}, logprobs)

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: list[TokenLogprobs]) -> bytes:
        return self._event(_choice_of(index, delta, logprobs))


def _choice_of(index: int, delta: dict[str, Any], logprobs: list[TokenLogprobs]) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": None}
    return {**choice, "logprobs": chat_logprobs(logprobs)} if logprobs else choice


def _message(pieces: list[Piece]) -> tuple[dict[str, Any], int]:
    """Join the pieces into a message; return it with the number of its tool calls."""
    texts: dict[type[Piece], str] = {ContentPart: "", ReasoningPart: ""}
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        if isinstance(piece, ToolCall):
            calls.append(_call(piece.name, ""))
        elif isinstance(piece, ArgumentsPart):
            calls[-1]["function"]["arguments"] += piece.text
        else:
            texts[type(piece)] += piece.text
    content = texts[ContentPart]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": content or ("" if not calls else None),
    }
    if texts[ReasoningPart]:
        message["reasoning_content"] = texts[ReasoningPart]
    if calls:
        message["tool_calls"] = calls
    return message, len(calls)


def _call(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": new_call_id(), "type": "function", "function": function}


def _reason(reason: str, calls: int) -> str:
    return "tool_calls" if calls and reason == "stop" else reason
