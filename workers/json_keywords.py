"""The keywords of JSON Schema: read singly, and those of several schemas taken together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from workers.gbnf import MOST_REPEATED
from workers.json_numbers import Bounds

Schema = Mapping[str, Any]
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
ANNOTATIONS = frozenset(
    {
        "title", "description", "default", "examples", "example", "deprecated", "readOnly",
        "writeOnly", "$comment", "$schema", "$id", "$anchor", "$defs", "definitions",
        "discriminator", "contentEncoding", "contentMediaType",
    }
)  # fmt: skip
"""Keywords that forbid nothing."""


class SchemaError(ValueError):
    """A schema that no grammar can be made of; the message is one sentence."""

    def __init__(self, message: str, *, empty: bool = False) -> None:
        """`empty`: because there is no value that it admits, which is fine for one of several."""
        super().__init__(message)
        self.empty = empty


def number_bounds(schema: Schema) -> Bounds:
    """Both ways of writing exclusive bounds: as numbers and, in draft 4, as booleans."""
    least, most = _decimal(schema, "minimum"), _decimal(schema, "maximum")
    above = least is not None and schema.get("exclusiveMinimum") is True
    below = most is not None and schema.get("exclusiveMaximum") is True
    bound = _decimal(schema, "exclusiveMinimum")
    if bound is not None and (least is None or bound >= least):
        least, above = bound, True
    bound = _decimal(schema, "exclusiveMaximum")
    if bound is not None and (most is None or bound <= most):
        most, below = bound, True
    return Bounds(least, most, above, below)


def _decimal(schema: Schema, word: str) -> Decimal | None:
    value = schema.get(word)
    if value is None or isinstance(value, bool):
        return None
    bound = Decimal(str(value)) if isinstance(value, (int, float)) else Decimal("nan")
    if not bound.is_finite() or abs(bound) > Decimal("1e30"):
        raise SchemaError(f"`{word}` must be a number below 1e30.")
    return bound


def count(schema: Schema, word: str) -> int | None:
    """A number of things. None: no bound."""
    value = schema.get(word)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SchemaError(f"`{word}` must be a whole number, 0 or more.")
    if value > MOST_REPEATED:
        raise SchemaError(f"`{word}` must be {MOST_REPEATED} or less for a grammar.")
    return value


def check_order(least: int, most: int | None, word: str) -> None:
    """Raises SchemaError if no count is left."""
    if most is not None and most < least:
        raise SchemaError(f"`{word}` leaves less room than is asked for.", empty=True)


def listed(value: object, word: str, *, may_be_empty: bool = False) -> list[Any]:
    """`value` if it is a list."""
    if not isinstance(value, list) or not (value or may_be_empty):
        raise SchemaError(f"`{word}` must be a list, and not an empty one.")
    return value


def of_type(value: object, kind: str) -> bool:
    """Whether `value` is of JSON Schema's type `kind`."""
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, (int, float)):
        return kind == "number" or (kind == "integer" and value == int(value))
    python: dict[str, type] = {"object": dict, "array": list, "string": str, "null": type(None)}
    return kind in python and isinstance(value, python[kind])


def within(value: object, schema: Schema) -> bool:
    """Whether a scalar keeps the bounds of `schema`."""
    if isinstance(value, str):
        most = count(schema, "maxLength")
        return len(value) >= (count(schema, "minLength") or 0) and (
            most is None or len(value) <= most
        )
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number_bounds(schema).holds(Decimal(str(value)))
    return True


def same(one: object, other: object) -> bool:
    """Equality as JSON has it: true is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def merged(one: Schema, other: object) -> Schema:
    """A schema that admits what both do. Raises SchemaError if it can't be said in one."""
    if other is True:
        return one
    if not isinstance(other, Mapping):
        raise SchemaError("A part of the schema admits nothing.", empty=other is False)
    _check_closed(one, other)
    _check_closed(other, one)
    found = dict(one)
    for word, value in other.items():
        if word not in found or word in ANNOTATIONS:
            found.setdefault(word, value)
        elif not same(found[word], value):
            _combine(found, word, value)
    return found


def _check_closed(one: Schema, other: Schema) -> None:
    """One that allows no other properties than its own does not allow the other's."""
    names = one.get("properties", {})
    strangers = [name for name in other.get("properties", {}) if name not in names]
    if one.get("additionalProperties") is False and strangers:
        raise SchemaError(
            f"A part of the schema has the property {strangers[0]!r}, and another forbids it."
        )


def _combine(found: dict[str, Any], word: str, value: Any) -> None:
    """Narrows `found[word]` by `value`."""
    before = found[word]
    if word in {"anyOf", "oneOf", "$ref"}:
        found["allOf"] = [*found.get("allOf", []), {word: value}]
    elif word == "allOf":
        found[word] = [*listed(before, word), *listed(value, word)]
    elif word == "properties":
        both = {name: {"allOf": [before[name], value[name]]} for name in before if name in value}
        found[word] = {**before, **value, **both}
    elif word == "required":
        found[word] = list(dict.fromkeys([*before, *value]))
    elif word == "type":
        found[word] = _shared_types(before, value)
    elif word == "enum":
        found[word] = [item for item in before if any(same(item, other) for other in value)]
    elif word in _NARROWER and _is_number(before) and _is_number(value):
        found[word] = _NARROWER[word](before, value)
    elif word in {"items", "additionalProperties"}:
        found[word] = {"allOf": [before, value]} if before and value else False
    else:
        raise SchemaError(f"Parts of the schema differ in their `{word}`.")


_NARROWER: Mapping[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shared_types(one: object, other: object) -> list[object]:
    ones = [one] if isinstance(one, str) else listed(one, "type", may_be_empty=True)
    others = [other] if isinstance(other, str) else listed(other, "type", may_be_empty=True)
    shared = [kind for kind in ones if kind in others]
    if "integer" not in shared and {"integer", "number"} <= {*ones, *others}:
        both = ("integer" in ones and "number" in others) or (
            "number" in ones and "integer" in others
        )
        shared += ["integer"] if both else []
    return shared
