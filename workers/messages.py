"""The messages of a chat, as templates expect them."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from workers.errors import ApiError


def check_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Text parts joined, and the arguments of calls as values. Raises ApiError 400."""
    if not messages:
        raise _error("`messages` must not be empty.")
    checked = []
    for message in messages:
        if not isinstance(message.get("role"), str):
            raise _error("Each message must have a `role`.")
        calls = {"tool_calls": _calls(message["tool_calls"])} if message.get("tool_calls") else {}
        checked.append({**message, "content": _text(message.get("content")), **calls})
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
            raise _error(f"This model reads text only, not {kind!r}.")
        if not isinstance(part.get("text"), str):
            raise _error("A text part must have a `text`.")
        texts.append(part["text"])
    return "\n".join(texts)


def _calls(calls: object) -> list[dict[str, Any]]:
    """OpenAI writes arguments as JSON in a string; templates write the JSON themselves."""
    if not isinstance(calls, list):
        raise _error("`tool_calls` must be a list.")
    found = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _error("Each of `tool_calls` must have a `function` with a `name`.")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            with suppress(ValueError, RecursionError):  # what is broken goes to the model as it is
                arguments = json.loads(arguments or "{}")
        found.append({"type": "function", **call, "function": {**function, "arguments": arguments}})
    return found


def _error(sentence: str) -> ApiError:
    return ApiError(400, sentence, param="messages")
