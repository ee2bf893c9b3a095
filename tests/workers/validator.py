"""Whether a value fits a JSON schema: the judge of grammars, written without a look at them."""

from __future__ import annotations

import re
from typing import Any


def fits(value: Any, schema: Any, root: Any = None) -> bool:
    """As JSON Schema 2020-12 has it, for the keywords that the tests use."""
    if isinstance(schema, bool):
        return schema
    root = schema if root is None else root
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    return (
        all(fits(value, part, root) for part in [*schema.get("allOf", []), *_target(schema, root)])
        and ("anyOf" not in schema or any(fits(value, part, root) for part in schema["anyOf"]))
        and ("const" not in schema or _equal(value, schema["const"]))
        and ("enum" not in schema or any(_equal(value, item) for item in schema["enum"]))
        and (not types or any(_is(value, kind) for kind in types))
        and _inside(value, schema, root)
    )


def _target(schema: Any, root: Any) -> list[Any]:
    place = root
    for step in schema.get("$ref", "").split("/")[1:]:
        place = place[step]
    return [place] if "$ref" in schema else []


def _is(value: Any, kind: str) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "null": value is None,
        "number": number,
        "integer": number and value == int(value),
    }[kind]


def _equal(one: Any, other: Any) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _inside(value: Any, schema: Any, root: Any) -> bool:
    if isinstance(value, str):
        value.encode()  # no half of a surrogate pair
        pattern = schema.get("pattern")
        return _counted(value, schema, "Length") and (
            not pattern or bool(re.search(pattern, value))
        )
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        rest = schema.get("items", True)
        each = [*first, *[rest] * (len(value) - len(first))][: len(value)]
        return _counted(value, schema, "Items") and all(
            fits(item, part, root) for item, part in zip(value, each, strict=True)
        )
    if isinstance(value, dict):
        named = schema.get("properties", {})
        other = schema.get("additionalProperties", True)
        return (
            _counted(value, schema, "Properties")
            and all(name in value for name in schema.get("required", []))
            and all(fits(item, named.get(name, other), root) for name, item in value.items())
        )
    if _is(value, "number"):
        return (
            schema.get("minimum", value) <= value <= schema.get("maximum", value)
            and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
            and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        )
    return True


def _counted(value: Any, schema: Any, what: str) -> bool:
    most = schema.get(f"max{what}", len(value))
    return bool(schema.get(f"min{what}", 0) <= len(value) <= most)
