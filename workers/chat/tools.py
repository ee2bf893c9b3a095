"""Tools of a request, and the grammars of tool calls in each dialect.

There are two grammars: for an answer that has to be a call, and for the text after the marker of a
call that the model begins by itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.chat.output_parser import Dialect
from workers.errors import ApiError
from workers.grammar.gbnf import literal
from workers.grammar.json_schema import SchemaCompiler, SchemaError

CHOICES = ("none", "auto", "required")


@dataclass(frozen=True)
class Tools:
    """The tools that an answer may call."""

    given: list[dict[str, Any]]
    """The tools as in the request, which is the templates' format."""
    schemas: Mapping[str, Any]
    """Schemas of their parameters, by name."""
    dialect: Dialect
    must: tuple[str, ...]
    """Tools of which one has to be called; empty: the model decides."""
    several: bool
    """True if an answer may have more than one call."""


def dialect_of(template: str) -> Dialect | None:
    """Return the dialect of a model with this chat template; None: it does not support tools.

    The dialect is recognized by text that each family's templates write around calls.
    """
    if "tools" not in template:
        return None
    if "<function=" in template:
        return Dialect.TAGS
    if "<tool_call>" in template:
        return Dialect.HERMES
    if "[TOOL_CALLS]" in template:
        return Dialect.MISTRAL_NAMED if "[ARGS]" in template else Dialect.MISTRAL
    if "<|python_tag|>" in template or ("ipython" in template and "parameters" in template):
        return Dialect.LLAMA
    return None


def tools_of(
    given: Sequence[Any] | None, choice: object, *, several: bool | None, dialect: Dialect | None
) -> Tools | None:
    """Return the request's tools; None if it has none or excludes calls.

    `several`: an answer may have several calls; None: only if the model decides whether to call.
    Raises ApiError 400 for invalid tools, and for a model that does not support tools.
    """
    schemas = _schemas(given or [])
    must = _must(choice, schemas)
    if not schemas or choice == "none":
        return None
    if dialect is None:
        raise ApiError(400, "This model's chat template does not support tools.", param="tools")
    return Tools(
        list(given or []), schemas, dialect, must, not must if several is None else several
    )


def _schemas(given: Sequence[Any]) -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    for tool in given:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type", "function") != "function":
            raise ApiError(400, "Each tool must be a `function`.", param="tools")
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise ApiError(400, "Each tool must have a `name`.", param="tools")
        if name in schemas:
            raise ApiError(400, f"Two tools have the name {name!r}.", param="tools")
        parameters = function.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ApiError(400, "A tool's `parameters` must be a schema.", param="tools")
        schemas[name] = {"type": "object", "properties": {}, **parameters}
    return schemas


def _must(choice: object, schemas: Mapping[str, Any]) -> tuple[str, ...]:
    if choice is None or choice in ("none", "auto"):
        return ()
    if choice == "required":
        if not schemas:
            raise ApiError(400, "There are no `tools` to call.", param="tool_choice")
        return tuple(schemas)
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if name is None:
        raise ApiError(
            400,
            f"`tool_choice` must be {', '.join(CHOICES)} or name a function.",
            param="tool_choice",
        )
    if name not in schemas:
        raise ApiError(400, f"There is no tool {name!r}.", param="tool_choice")
    return (name,)


def new_call_id() -> str:
    """Return a random id of 9 letters and digits, the only form Mistral's templates accept."""
    return os.urandom(5).hex()[:9]


THOUGHT = '([^<] | "<" [^/] | "</" [^t])* "</think>" [ \\n]*'
"""Rest of the reasoning that the prompt opens."""
BLANK = "[ \\n]{0,2}"
RAW = '([^<] | "<" [^/])*'
"""Text of a parameter between tags."""


def forced_call_grammar(tools: Tools, *, thinking: bool = False) -> str:
    """Return the grammar of an answer that has to be a call. Raises SchemaError.

    `thinking`: the prompt ends with an open think tag.
    """
    compiler = SchemaCompiler(lenient=True)
    body = _wrapped(_any_call(tools.must, tools, compiler), tools)
    return compiler.grammar(f"{THOUGHT} {body}" if thinking else body)


def begun_call_grammar(tools: Tools) -> str:
    """Return the grammar of the text after a call's marker. Raises SchemaError."""
    compiler = SchemaCompiler(lenient=True)
    call = _any_call(tuple(tools.schemas), tools, compiler)
    if tools.dialect in {Dialect.HERMES, Dialect.TAGS}:
        rest = f'{BLANK} {call} {BLANK} "</tool_call>" {BLANK}'
        return compiler.grammar(_again(rest, f'"<tool_call>" {rest}', tools))
    if tools.dialect is Dialect.MISTRAL:
        more = f'(", " {call})*' if tools.several else ""
        return compiler.grammar(f'{BLANK} "[" {call} {more} "]"')
    if tools.dialect is Dialect.MISTRAL_NAMED:
        return compiler.grammar(_again(call, f'"[TOOL_CALLS]" {call}', tools))
    return compiler.grammar(_again(f"{BLANK} {call}", f'";" {BLANK} {call}', tools))


def _again(first: str, more: str, tools: Tools) -> str:
    return f"{first} ({more})*" if tools.several else first


def _any_call(names: tuple[str, ...], tools: Tools, compiler: SchemaCompiler) -> str:
    calls = []
    for name in names:
        try:
            calls.append(_call(name, tools, compiler))
        except SchemaError as error:
            raise SchemaError(f"Tool {name!r}: {error}") from error
    return compiler.add(" | ".join(calls))


def _call(name: str, tools: Tools, compiler: SchemaCompiler) -> str:
    schema = tools.schemas[name]
    if tools.dialect is Dialect.TAGS:
        return _tagged(name, schema, compiler)
    arguments = compiler.rule(schema, root=schema)
    if tools.dialect is Dialect.MISTRAL_NAMED:
        return f"{literal(f'{name}[ARGS]')} {arguments}"
    word = "parameters" if tools.dialect is Dialect.LLAMA else "arguments"
    head = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{word}": '
    return f'{literal(head)} {arguments} "}}"'


def _tagged(name: str, schema: dict[str, Any], compiler: SchemaCompiler) -> str:
    parts = [literal(f"<function={name}>\n")]
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise SchemaError("`properties` must be an object, and `required` a list.")
    for key, value in properties.items():
        text = isinstance(value, dict) and value.get("type") == "string" and "enum" not in value
        if text:
            rule = compiler.add(RAW)
        elif isinstance(value, dict) and value.get("type") == "string":
            rule = compiler.add(" | ".join(literal(str(item)) for item in value["enum"]))
        else:
            rule = compiler.rule(value, root=schema)
        pair = f'{literal(f"<parameter={key}>" + chr(10))} {rule} "\\n</parameter>\\n"'
        parts.append(pair if key in required else f"({pair})?")
    return compiler.add(" ".join([*parts, '"</function>"']))


def _wrapped(call: str, tools: Tools) -> str:
    more = tools.several
    if tools.dialect in {Dialect.HERMES, Dialect.TAGS}:
        block = f'"<tool_call>\\n" {call} "\\n</tool_call>"'
        return f'{block} ("\\n" {block})*' if more else block
    if tools.dialect is Dialect.MISTRAL:
        rest = f'(", " {call})*' if more else ""
        return f'"[TOOL_CALLS][" {call} {rest} "]"'
    if tools.dialect is Dialect.MISTRAL_NAMED:
        block = f'"[TOOL_CALLS]" {call}'
        return f"({block})+" if more else block
    return f'{call} ("; " {call})*' if more else call
