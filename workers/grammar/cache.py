"""Compiled grammars: the one that a request specifies, and a cache of recent ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from workers.errors import ApiError
from workers.llama.model import LlamaLog, Model
from workers.llama.sampler import Grammar
from workers.requests.bodies import Generation

CACHED = 16
"""Compiled grammars in the cache; clients use the same one for many requests."""
FORMATS = ("text", "json_object", "json_schema")


class Grammars:
    """A compiler of grammars with an LRU cache. Used on the event loop's thread."""

    def __init__(self, model: Model, log: LlamaLog) -> None:
        self._model = model
        self._log = log
        self._compiled: OrderedDict[bytes, Grammar] = OrderedDict()
        self.default: Grammar | None = None
        """Grammar of answers to requests that specify none; None: any text."""

    def requested(self, request: Generation) -> Grammar | None:
        """Return the grammar that `request` specifies, or None. Raises ApiError 400.

        It is in `grammar`, `json_schema` or `response_format`, which exclude each other.
        """
        response_format = request.response_format or {}
        kind = response_format.get("type", "text")
        if kind not in FORMATS:
            raise ApiError(
                400,
                f"`response_format` must have a `type` of {', '.join(FORMATS)}, not {kind!r}.",
                param="response_format",
            )
        given = [
            name
            for name, is_given in (
                ("grammar", request.grammar),
                ("json_schema", request.json_schema is not msgspec.UNSET),
                ("response_format", kind != "text"),
            )
            if is_given
        ]
        if len(given) > 1:
            raise ApiError(
                400, f"`{given[0]}` and `{given[1]}` exclude each other.", param=given[1]
            )
        if not given:
            return None
        if request.grammar:
            return self.compile(request.grammar, "grammar")
        if kind == "text":
            return self.of_schema(request.json_schema, "json_schema")
        schema, strict = _response_format_schema(response_format)
        return self.of_schema(schema, "response_format", lenient=not strict)

    def of_schema(self, schema: object, param: str, *, lenient: bool = False) -> Grammar:
        """Return the grammar of the values that a JSON schema admits. Raises ApiError 400."""

        from workers.grammar.json_schema import SchemaError, schema_grammar

        def text() -> str:
            try:
                return schema_grammar(schema, lenient=lenient)
            except SchemaError as error:
                raise ApiError(400, str(error), param=param) from error

        key = b"lenient" if lenient else b"strict"
        return self.cached(key + msgspec.json.encode(schema), text, param)

    def compile(self, text: str, param: str) -> Grammar:
        """Return the grammar with the GBNF source `text`. Raises ApiError 400."""
        return self.cached(text.encode("utf-8", "replace"), lambda: text, param)

    def cached(self, key: bytes, text: Callable[[], str], param: str) -> Grammar:
        """Return the grammar cached under `key`, or compile the source that `text` returns.

        Raises ApiError 400.
        """
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
        if len(self._compiled) > CACHED:
            self._compiled.popitem(last=False)
        return grammar


def _response_format_schema(response_format: dict[str, Any]) -> tuple[object, bool]:
    """Return the schema of a `response_format`, OpenAI's or llama-server's; True if strict."""
    is_schema = response_format.get("type") == "json_schema"
    inner = response_format.get("json_schema") if is_schema else None
    holder = inner if isinstance(inner, dict) else response_format
    if "schema" not in holder and is_schema:
        raise ApiError(400, "`response_format` has no schema.", param="response_format")
    schema = holder.get("schema", {"type": "object"})
    return {"type": "object"} if schema is None else schema, holder.get("strict") is not False


def _sentence(error: ValueError) -> str:
    text = str(error).replace("\n", " ")
    return text if text.endswith(".") else f"The grammar can't be used: {text}."
