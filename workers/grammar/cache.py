"""Answers of a wished form: which grammar a request asks for, and that grammar compiled."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from workers.errors import ApiError
from workers.llama.model import LlamaLog, Model
from workers.llama.sampler import Grammar
from workers.requests.bodies import Generation

KEPT = 16
"""Compiled grammars; clients that use one ask for it again and again."""
FORMATS = ("text", "json_object", "json_schema")


class Grammars:
    """Compiles what requests ask for. Lives on the event loop's thread."""

    def __init__(self, model: Model, log: LlamaLog) -> None:
        self._model = model
        self._log = log
        self._compiled: OrderedDict[bytes, Grammar] = OrderedDict()
        self.default: Grammar | None = None
        """What answers follow that need follow nothing else."""

    def wished(self, request: Generation) -> Grammar | None:
        """The grammar that `request` asks for in one of four ways. Raises ApiError 400."""
        shape = request.response_format or {}
        kind = shape.get("type", "text")
        if kind not in FORMATS:
            raise ApiError(
                400,
                f"`response_format` must have a `type` of {', '.join(FORMATS)}, not {kind!r}.",
                param="response_format",
            )
        wishes = [
            name
            for name, wished in (
                ("grammar", request.grammar),
                ("json_schema", request.json_schema is not msgspec.UNSET),
                ("response_format", kind != "text"),
            )
            if wished
        ]
        if len(wishes) > 1:
            raise ApiError(
                400, f"`{wishes[0]}` and `{wishes[1]}` exclude each other.", param=wishes[1]
            )
        if not wishes:
            return None
        if request.grammar:
            return self.compile(request.grammar, "grammar")
        if kind == "text":
            return self.of_schema(request.json_schema, "json_schema")
        schema, strict = _of_format(shape)
        return self.of_schema(schema, "response_format", lenient=not strict)

    def of_schema(self, schema: object, param: str, *, lenient: bool = False) -> Grammar:
        """What admits the values of a JSON schema, and nothing else. Raises ApiError 400."""

        from workers.grammar.json_schema import SchemaError, schema_grammar

        def text() -> str:
            try:
                return schema_grammar(schema, lenient=lenient)
            except SchemaError as error:
                raise ApiError(400, str(error), param=param) from error

        key = b"lenient" if lenient else b"strict"
        return self.kept(key + msgspec.json.encode(schema), text, param)

    def compile(self, text: str, param: str) -> Grammar:
        """What `text` admits, which is GBNF. Raises ApiError 400."""
        return self.kept(text.encode("utf-8", "replace"), lambda: text, param)

    def kept(self, key: bytes, text: Callable[[], str], param: str) -> Grammar:
        """The grammar called `key`, which `text` writes if it is not there. Raises ApiError 400."""
        grammar = self._compiled.get(key)
        if grammar is None:
            from workers.grammar import gbnf

            source = text()
            try:
                gbnf.check(source)
                grammar = Grammar.compile(source, self._model, self._log)
            except ValueError as error:
                raise ApiError(400, _sentence(error), param=param) from error
            self._compiled[key] = grammar
        self._compiled.move_to_end(key)
        if len(self._compiled) > KEPT:
            self._compiled.popitem(last=False)
        return grammar


def _of_format(shape: dict[str, Any]) -> tuple[object, bool]:
    """The schema of a `response_format`, as OpenAI or llama-server write it; whether strict."""
    inner = shape.get("json_schema") if shape.get("type") == "json_schema" else None
    holder = inner if isinstance(inner, dict) else shape
    if "schema" not in holder and shape.get("type") == "json_schema":
        raise ApiError(400, "`response_format` has no schema.", param="response_format")
    schema = holder.get("schema", {"type": "object"})
    return {"type": "object"} if schema is None else schema, holder.get("strict") is not False


def _sentence(error: ValueError) -> str:
    text = str(error).replace("\n", " ")
    return text if text.endswith(".") else f"The grammar can't be used: {text}."
