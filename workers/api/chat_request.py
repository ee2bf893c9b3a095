"""A chat request: checked messages, the rendered prompt, and constraints on the answer."""

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
    """Return the messages as templates expect them. Raises ApiError 400.

    Text parts are joined, and the arguments of tool calls are decoded.
    """
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
    """Decode the arguments: OpenAI has JSON in a string, while templates encode values."""
    if not isinstance(calls, list):
        raise _error("`tool_calls` must be a list.")
    checked = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _error("Each of `tool_calls` must have a `function` with a `name`.")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            with suppress(ValueError, RecursionError):  # the model gets invalid JSON unchanged
                arguments = json.loads(arguments or "{}")
        decoded = {**function, "arguments": arguments}
        checked.append({"type": "function", **call, "function": decoded})
    return checked


def _error(sentence: str) -> ApiError:
    return ApiError(400, sentence, param="messages")


@dataclass(frozen=True)
class Chat:
    """A rendered chat and the constraints on its answers."""

    prompt: str
    tools: Tools | None
    thinking: bool
    """True if the prompt ends with an open think tag."""
    grammar: Grammar | None
    """The grammar of the answer; None: any text."""
    call_grammar: Grammar | None = None
    """The grammar of the text after a tool call's marker; None: any text."""

    def start(self) -> CallStart | None:
        """Return a detector of that marker for one answer; None: none is needed."""
        if self.call_grammar is None or self.tools is None:
            return None
        return CallStart(MARKERS[self.tools.dialect][:1], thinking=self.thinking)

    def parser(self) -> OutputParser:
        """Return an output parser for one answer."""
        if self.tools is None:
            return OutputParser(None, {}, thinking=self.thinking)
        return OutputParser(self.tools.dialect, self.tools.schemas, thinking=self.thinking)


async def open_chat(worker: WorkerService, request: ChatRequest, at: float) -> Chat:
    """Check and render a chat with the model's template. Raises ApiError 400.

    `at` is the current time for the template, in seconds since the epoch.
    """
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
    grammar = worker.grammars.requested(request)
    if tools is not None and tools.must:
        if grammar is not None:
            raise ApiError(
                400, "A forced tool call excludes a grammar or format.", param="tool_choice"
            )
        grammar = _forced_call_grammar(worker, tools, thinking=thinking)
    else:
        grammar = grammar or worker.grammars.default
        if thinking and grammar is not None:
            # The grammar holds from the first token on, so the thought ends before the answer.
            prompt += f"\n{END_THINK}\n\n"
            thinking = False
    call_grammar = (
        None if tools is None or grammar is not None else _free_call_grammar(worker, tools)
    )
    return Chat(prompt, tools, thinking, grammar, call_grammar)


def _free_call_grammar(worker: WorkerService, tools: Tools) -> Grammar | None:
    """Return the grammar for a call that the model begins by itself.

    None if the schemas have no grammar: the request requires none.
    """
    from workers.chat.tools import begun_call_grammar
    from workers.grammar.json_schema import SchemaError

    key = msgspec.json.encode((tools.dialect.name, tools.several, tools.schemas))
    try:
        return worker.grammars.cached(key, lambda: begun_call_grammar(tools), "tools")
    except (SchemaError, ApiError):
        return None


def _forced_call_grammar(worker: WorkerService, tools: Tools, *, thinking: bool) -> Grammar:
    from workers.chat.tools import forced_call_grammar
    from workers.grammar.json_schema import SchemaError

    try:
        text = forced_call_grammar(tools, thinking=thinking)
    except SchemaError as error:
        raise ApiError(400, str(error), param="tools") from error
    return worker.grammars.compile(text, "tools")
