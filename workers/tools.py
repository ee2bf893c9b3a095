"""Tools in a request: what there are, whether one must be called, and how the model writes it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.answer_parser import Dialect
from workers.errors import ApiError

CHOICES = ("none", "auto", "required")


@dataclass(frozen=True)
class Tools:
    """The tools that an answer may call."""

    given: list[dict[str, Any]]
    """As the request has them, which is how templates want them."""
    schemas: Mapping[str, Any]
    """Of their parameters, by name."""
    dialect: Dialect
    must: tuple[str, ...]
    """One of these has to be called; none: that is up to the model."""
    several: bool
    """Whether an answer may have more than one call."""


def dialect_of(template: str) -> Dialect | None:
    """How calls are written by a model with this chat template; None: it knows no tools.

    What is looked for is what the templates of each family write between calls.
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
    """The request's tools; None if it has none, or does not want them called.

    `several`: whether they may be called more than once; None: if that is up to the model.
    Raises ApiError 400 for what are no tools, and for a model that can't call them.
    """
    schemas = _schemas(given or [])
    must = _must(choice, schemas)
    if not schemas or choice == "none":
        return None
    if dialect is None:
        raise ApiError(400, "This model's chat template knows no tools.", param="tools")
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
    """Of 9 letters and digits, because Mistral's templates take no others."""
    return os.urandom(5).hex()[:9]
