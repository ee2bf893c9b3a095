"""A chat as the model reads it, and what its answer has to be and may hold."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from workers.answer_parser import END_THINK, MARKERS, THINK, AnswerParser
from workers.binding_sampler import Grammar
from workers.call_start import CallStart
from workers.errors import ApiError
from workers.messages import check_messages
from workers.openai_requests import ChatRequest
from workers.template import TemplateError
from workers.tools import Tools, dialect_of, tools_of
from workers.worker import Worker


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

    def parser(self) -> AnswerParser:
        """For one answer."""
        if self.tools is None:
            return AnswerParser(None, {}, thinking=self.thinking)
        return AnswerParser(self.tools.dialect, self.tools.schemas, thinking=self.thinking)


async def open_chat(worker: Worker, request: ChatRequest, at: float) -> Chat:
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


def _begun(worker: Worker, tools: Tools) -> Grammar | None:
    """None where there are schemas that no grammar can be made of: nobody asked for one."""
    from workers.json_keywords import SchemaError
    from workers.tool_grammar import begun_call

    key = msgspec.json.encode((tools.dialect.name, tools.several, tools.schemas))
    try:
        return worker.grammars.kept(key, lambda: begun_call(tools), "tools")
    except (SchemaError, ApiError):
        return None


def _forced(worker: Worker, tools: Tools, *, thinking: bool) -> Grammar:
    from workers.json_keywords import SchemaError
    from workers.tool_grammar import tool_grammar

    try:
        text = tool_grammar(tools, thinking=thinking)
    except SchemaError as error:
        raise ApiError(400, str(error), param="tools") from error
    return worker.grammars.compile(text, "tools")
