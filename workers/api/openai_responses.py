"""OpenAI's response bodies, and the chunks of a stream.

Responses of /v1/chat/completions: content, reasoning and tool calls.
"""

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
    """A prompt as it is told back."""

    text: str
    told: list[TokenLogprobs]


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


class ResponseShape:
    """What distinguishes the responses of an endpoint; one for each request.

    The bytes around a chunk's text are encoded once, so a token costs its own text only.
    """

    prefix: str
    whole: str
    part: str

    def __init__(
        self, model: str, count: int, birth: ResponseIdentity, *, with_usage: bool = False
    ) -> None:
        """For so many answers; `with_usage`: a stream ends with a chunk that tells it."""
        self._head: dict[str, object] = {
            "id": f"{self.prefix}-{birth.name}",
            "created": birth.created,
            "model": model,
        }
        self._count = count
        self._with_usage = with_usage
        self._around: dict[int, tuple[bytes, bytes]] = {}

    def response(self, parts: list[AnswerDelta], timings: Timings) -> dict[str, object]:
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

    def news(self, part: AnswerDelta) -> bytes:
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

    def _choice(self, part: AnswerDelta, reason: str) -> dict[str, Any]:
        raise NotImplementedError

    def _piece(self, index: int, text: str | None, told: list[TokenLogprobs]) -> dict[str, Any]:
        raise NotImplementedError


class CompletionResponses(ResponseShape):
    """Responses of /v1/completions."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def __init__(
        self,
        model: str,
        count: int,
        birth: ResponseIdentity,
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

    def _choice(self, part: AnswerDelta, reason: str) -> dict[str, Any]:
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

    def _piece(self, index: int, text: str | None, told: list[TokenLogprobs]) -> dict[str, Any]:
        start = 0 if self._echo is None else len(self._echo[index].text)
        return {
            "index": index,
            "text": text or "",
            "logprobs": text_logprobs(told, start) if told else None,
            "finish_reason": None,
        }


def _ended(part: AnswerDelta) -> Finished:
    if part.end is None:
        raise RuntimeError("an answer that was waited for has no end")
    return part.end


def error_event(message: str) -> bytes:
    """What ends a stream that broke: an error, and no end mark after it."""
    error = {"message": message, "type": "server_error", "param": None, "code": None}
    return _event({"error": error})


def _event(body: dict[str, object]) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"


class ChatResponses(ResponseShape):
    """The responses to one request."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(
        self,
        model: str,
        parsers: Sequence[OutputParser],
        birth: ResponseIdentity,
        *,
        with_usage: bool = False,
    ) -> None:
        """`parsers`: one for each answer."""
        super().__init__(model, len(parsers), birth, with_usage=with_usage)
        self._parsers = parsers
        self._calls = [0] * len(parsers)
        self._told: list[list[TokenLogprobs]] = [[] for _ in parsers]
        """Tokens of text that is held back."""

    def opening(self) -> bytes:
        """The role comes first, and alone."""
        return b"".join(
            self._chunk(index, {"role": "assistant", "content": ""}, [])
            for index in range(self._count)
        )

    def news(self, part: AnswerDelta) -> bytes:
        """As Shape promises."""
        parser = self._parsers[part.index]
        if parser.idle:
            return super().news(part)
        pieces = parser.feed(part.text)
        if part.end is not None:
            pieces += parser.finish()
        told = self._told[part.index] + part.told
        written = []
        for piece in pieces:
            written.append(self._chunk(part.index, self._delta(part.index, piece), told))
            told = []
        if part.end is not None:
            if told:
                written.append(self._chunk(part.index, {}, told))
            written.append(self._last(part.index, part.end.reason, part.end.timings))
        self._told[part.index] = told
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
            "logprobs": chat_logprobs(part.told) if part.told else None,
            "finish_reason": _reason(reason, calls),
        }

    def _piece(self, index: int, text: str | None, told: list[TokenLogprobs]) -> dict[str, Any]:
        return _choice_of(index, {} if text is None else {"content": text}, told)

    def _chunk(self, index: int, delta: dict[str, Any], told: list[TokenLogprobs]) -> bytes:
        return self._event(_choice_of(index, delta, told))


def _choice_of(index: int, delta: dict[str, Any], told: list[TokenLogprobs]) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": None}
    return {**choice, "logprobs": chat_logprobs(told)} if told else choice


def _message(pieces: list[Piece]) -> tuple[dict[str, Any], int]:
    """The message that `pieces` make, and how many calls there are in it."""
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
