"""The grammars of calls, in each dialect: of an answer that has to be one, and of what follows the
mark with which a model begins one of its own accord."""

from __future__ import annotations

import json
from typing import Any

from workers.answer_parser import Dialect
from workers.gbnf import literal
from workers.json_keywords import SchemaError
from workers.json_schema import SchemaCompiler
from workers.tools import Tools

THOUGHT = '([^<] | "<" [^/] | "</" [^t])* "</think>" [ \\n]*'
"""The rest of a thought that the prompt has begun."""
BLANK = "[ \\n]{0,2}"
RAW = '([^<] | "<" [^/])*'
"""A text parameter between tags."""


def tool_grammar(tools: Tools, *, thinking: bool = False) -> str:
    """What admits a call of one of the tools that must be called, or several if that is allowed.

    `thinking`: the prompt has opened a think tag. Raises SchemaError.
    """
    compiler = SchemaCompiler(lenient=True)
    body = _wrapped(_any_call(tools.must, tools, compiler), tools)
    return compiler.grammar(f"{THOUGHT} {body}" if thinking else body)


def begun_call(tools: Tools) -> str:
    """What admits the rest of an answer behind the mark of a call. Raises SchemaError."""
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
