"""A chat as the model reads it, and what its answer has to be and may hold.

The messages of a chat, as templates expect them.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from workers.chat.output_parser import END_THINK, MARKERS, THINK, CallStart, OutputParser
from workers.chat.template import TemplateError
from workers.chat.tools import Tools, dialect_of, tools_of
from workers.errors import ApiError
from workers.llama.sampler import Grammar
from workers.requests.bodies import ChatRequest
from workers.service import WorkerService


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


@dataclass(frozen=True)
class Chat:
    """One request's chat."""

    prompt: str
    tools: Tools | None
    thinking: bool
    """The prompt ends within a thought."""
    grammar: Grammar | None
    """What the answer must follow."""
    call: Grammar | None = None
    """What it must follow behind the mark of a call."""

    def start(self) -> CallStart | None:
        """Who finds that mark in one answer."""
        if self.call is None or self.tools is None:
            return None
        return CallStart(MARKERS[self.tools.dialect][:1], thinking=self.thinking)

    def parser(self) -> OutputParser:
        """For one answer."""
        if self.tools is None:
            return OutputParser(None, {}, thinking=self.thinking)
        return OutputParser(self.tools.dialect, self.tools.schemas, thinking=self.thinking)


async def open_chat(worker: WorkerService, request: ChatRequest, at: float) -> Chat:
    """Renders the messages and the tools with the model's template, for which it is the time `at`.
    Raises ApiError 400."""
    messages = check_messages(request.messages)
    tools = tools_of(
        request.tools,
        request.tool_choice,
        several=request.parallel_tool_calls,
        dialect=dialect_of(worker.template.source),
    )
    variables = dict(request.chat_template_kwargs or {})
    if tools is not None:
        variables["tools"] = tools.given
    try:
        prompt = await worker.template.render(messages, variables, at=at)
    except TemplateError as error:
        raise ApiError(400, str(error), param="messages") from error
    thinking = prompt.rstrip().endswith(THINK)
    grammar = worker.grammars.wished(request)
    if tools is not None and tools.must:
        if grammar is not None:
            raise ApiError(
                400, "An answer can't be a call and have another form.", param="tool_choice"
            )
        grammar = _forced(worker, tools, thinking=thinking)
    else:
        grammar = grammar or worker.grammars.default
        if thinking and grammar is not None:
            prompt += f"\n{END_THINK}\n\n"  # the answer has that form from its first letter on
            thinking = False
    call = None if tools is None or grammar is not None else _begun(worker, tools)
    return Chat(prompt, tools, thinking, grammar, call)


def _begun(worker: WorkerService, tools: Tools) -> Grammar | None:
    """None where there are schemas that no grammar can be made of: nobody asked for one."""
    from workers.chat.tools import begun_call
    from workers.grammar.json_schema import SchemaError

    key = msgspec.json.encode((tools.dialect.name, tools.several, tools.schemas))
    try:
        return worker.grammars.kept(key, lambda: begun_call(tools), "tools")
    except (SchemaError, ApiError):
        return None


def _forced(worker: WorkerService, tools: Tools, *, thinking: bool) -> Grammar:
    from workers.chat.tools import tool_grammar
    from workers.grammar.json_schema import SchemaError

    try:
        text = tool_grammar(tools, thinking=thinking)
    except SchemaError as error:
        raise ApiError(400, str(error), param="tools") from error
    return worker.grammars.compile(text, "tools")
