"""Responses of /v1/chat/completions: content, reasoning and tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workers.answer_parser import AnswerParser
from workers.answer_pieces import Arguments, Call, Content, Piece, Reasoning
from workers.answers import Part
from workers.openai_responses import Shape
from workers.resuming import Birth
from workers.sequence import Timings
from workers.token_log import Told, chat_logprobs
from workers.tools import new_call_id


class ChatShape(Shape):
    """The responses to one request."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(
        self,
        model: str,
        parsers: Sequence[AnswerParser],
        birth: Birth,
        *,
        with_usage: bool = False,
    ) -> None:
        """`parsers`: one for each answer."""
        super().__init__(model, len(parsers), birth, with_usage=with_usage)
        self._parsers = parsers
        self._calls = [0] * len(parsers)
        self._told: list[list[Told]] = [[] for _ in parsers]
        """Tokens of text that is held back."""

    def opening(self) -> bytes:
        """The role comes first, and alone."""
        return b"".join(
            self._chunk(index, {"role": "assistant", "content": ""}, [])
            for index in range(self._count)
        )

    def news(self, part: Part) -> bytes:
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
        if isinstance(piece, Content):
            return {"content": piece.text}
        if isinstance(piece, Reasoning):
            return {"reasoning_content": piece.text}
        if isinstance(piece, Call):
            self._calls[index] += 1
            call = {"index": self._calls[index] - 1, **_call(piece.name, "")}
            return {"tool_calls": [call]}
        call = {"index": self._calls[index] - 1, "function": {"arguments": piece.text}}
        return {"tool_calls": [call]}

    def _choice(self, part: Part, reason: str) -> dict[str, Any]:
        parser = self._parsers[part.index]
        message, calls = _message(parser.feed(part.text) + parser.finish())
        return {
            "index": part.index,
            "message": message,
            "logprobs": chat_logprobs(part.told) if part.told else None,
            "finish_reason": _reason(reason, calls),
        }

    def _piece(self, index: int, text: str | None, told: list[Told]) -> dict[str, Any]:
        return _choice_of(index, {} if text is None else {"content": text}, told)

    def _chunk(self, index: int, delta: dict[str, Any], told: list[Told]) -> bytes:
        return self._event(_choice_of(index, delta, told))


def _choice_of(index: int, delta: dict[str, Any], told: list[Told]) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": None}
    return {**choice, "logprobs": chat_logprobs(told)} if told else choice


def _message(pieces: list[Piece]) -> tuple[dict[str, Any], int]:
    """The message that `pieces` make, and how many calls there are in it."""
    texts: dict[type[Piece], str] = {Content: "", Reasoning: ""}
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        if isinstance(piece, Call):
            calls.append(_call(piece.name, ""))
        elif isinstance(piece, Arguments):
            calls[-1]["function"]["arguments"] += piece.text
        else:
            texts[type(piece)] += piece.text
    content = texts[Content]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": content or ("" if not calls else None),
    }
    if texts[Reasoning]:
        message["reasoning_content"] = texts[Reasoning]
    if calls:
        message["tool_calls"] = calls
    return message, len(calls)


def _call(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": new_call_id(), "type": "function", "function": function}


def _reason(reason: str, calls: int) -> str:
    return "tool_calls" if calls and reason == "stop" else reason
