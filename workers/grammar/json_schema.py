"""A compiler from JSON Schema to GBNF: every text of the grammar is valid under the schema.

The converse does not hold: members come in the schema's order only, numbers have at most 16 digits,
and an object with `properties` has no others unless `additionalProperties` allows them. Keywords
are those of JSON Schema 2020-12, and OpenAPI's where they do not conflict. `oneOf` is treated as
`anyOf`. Keywords that a grammar can't enforce (`not`, `if`, `uniqueItems` and others) are rejected,
or ignored if `lenient`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from workers.grammar.gbnf import MAX_REPETITIONS, MAX_RULES, literal
from workers.grammar.json_scalars import (
    CHARACTER,
    FORMATS,
    INTEGER,
    NUMBER,
    LengthBounds,
    PatternError,
    integers,
    matching,
    numbers,
    of_format,
    of_length,
)
from workers.requests.sampling import parse_natural

Schema = Mapping[str, Any]
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
ANNOTATIONS = frozenset(
    {
        "title", "description", "default", "examples", "example", "deprecated", "readOnly",
        "writeOnly", "$comment", "$schema", "$id", "$anchor", "$defs", "definitions",
        "discriminator", "contentEncoding", "contentMediaType",
    }
)  # fmt: skip
"""Keywords without effect on validity."""


class SchemaError(ValueError):
    """A schema without a grammar; the message is one sentence."""

    def __init__(self, message: str, *, empty: bool = False) -> None:
        """Take the message; `empty`: the schema admits no value, which a union may ignore."""
        super().__init__(message)
        self.empty = empty


def number_bounds(schema: Schema) -> LengthBounds:
    """Return the bounds; exclusive bounds are numbers or, as in draft 4, booleans."""
    least, most = _decimal(schema, "minimum"), _decimal(schema, "maximum")
    above = least is not None and schema.get("exclusiveMinimum") is True
    below = most is not None and schema.get("exclusiveMaximum") is True
    bound = _decimal(schema, "exclusiveMinimum")
    if bound is not None and (least is None or bound >= least):
        least, above = bound, True
    bound = _decimal(schema, "exclusiveMaximum")
    if bound is not None and (most is None or bound <= most):
        most, below = bound, True
    return LengthBounds(least, most, above, below)


def _decimal(schema: Schema, word: str) -> Decimal | None:
    value = schema.get(word)
    if value is None or isinstance(value, bool):
        return None
    bound = Decimal(str(value)) if isinstance(value, (int, float)) else Decimal("nan")
    if not bound.is_finite() or abs(bound) > Decimal("1e30"):
        raise SchemaError(f"`{word}` must be a number below 1e30.")
    return bound


def count(schema: Schema, word: str) -> int | None:
    """Return the count that a keyword such as `minItems` sets; None: no bound."""
    value = schema.get(word)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SchemaError(f"`{word}` must be a whole number, 0 or more.")
    if value > MAX_REPETITIONS:
        raise SchemaError(f"`{word}` must be {MAX_REPETITIONS} or less for a grammar.")
    return value


def check_order(least: int, most: int | None, word: str) -> None:
    """Raise SchemaError if the bounds exclude every count."""
    if most is not None and most < least:
        raise SchemaError(f"`{word}` is less than the required minimum.", empty=True)


def listed(value: object, word: str, *, may_be_empty: bool = False) -> list[Any]:
    """Return `value` if it is a list. Raises SchemaError."""
    if not isinstance(value, list) or not (value or may_be_empty):
        raise SchemaError(f"`{word}` must be a list, and not an empty one.")
    return value


def of_type(value: object, kind: str) -> bool:
    """Return True if `value` is of JSON Schema's type `kind`."""
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, (int, float)):
        return kind == "number" or (kind == "integer" and value == int(value))
    python: dict[str, type] = {"object": dict, "array": list, "string": str, "null": type(None)}
    return kind in python and isinstance(value, python[kind])


def within(value: object, schema: Schema) -> bool:
    """Return True if a scalar is within the bounds of `schema`."""
    if isinstance(value, str):
        most = count(schema, "maxLength")
        return len(value) >= (count(schema, "minLength") or 0) and (
            most is None or len(value) <= most
        )
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number_bounds(schema).holds(Decimal(str(value)))
    return True


def same(one: object, other: object) -> bool:
    """Return True if both are equal as JSON, where true is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def merged(one: Schema, other: object) -> Schema:
    """Return a schema for the values that both admit. Raises SchemaError if there is none."""
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
    """Raise SchemaError if `one` is closed and `other` has a property that `one` lacks."""
    names = one.get("properties", {})
    unknown = [name for name in other.get("properties", {}) if name not in names]
    if one.get("additionalProperties") is False and unknown:
        raise SchemaError(
            f"A part of the schema has the property {unknown[0]!r}, and another forbids it."
        )


def _combine(found: dict[str, Any], word: str, value: Any) -> None:
    """Narrow the keyword `word` in `found` by `value`."""
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


PLAIN = r'[^"\\\x00-\x1F\x7F'
"""An open set of the characters that need no escape, to which exceptions can be added."""


def members(
    pairs: Sequence[tuple[str, bool]],
    other: str,
    *,
    needs_one: bool,
    add: Callable[[str], str],
) -> str | None:
    """Return GBNF for an object's members in order, with commas between those present.

    `pairs` are rules, with True for required members. `other` is a rule for any number of further
    members, or empty. `needs_one`: at least one member is required. `add` makes a rule. None if a
    member is required and none is allowed.
    """
    following = f'("," ws {other})*' if other else ""
    """Rule for the rest after a member."""
    first = f"{other} {following}" if other else ""
    """Rule for the members from here on, at least one."""
    # From the last member to the first: each rule contains the rule for the members after it.
    for pair, required in reversed(pairs):
        here = f"{pair} {following}".strip()
        if required:
            first, following = here, f'"," ws {here}'
            needs_one = True
        else:
            first = add(f"{here} | {first}") if first else here
            following = f'("," ws {pair})? {following}'.strip()
        following = add(following)
    if needs_one:
        return f"{first} ws" if first else None
    return f"({first} ws)?" if first else ""


def other_name(names: Sequence[str], add: Callable[[str], str]) -> str:
    """Return GBNF for any text except `names`. It has no escapes, which could spell a name."""
    if not names:
        return f"{PLAIN}]*"
    starts: dict[str, list[str]] = {}
    for name in names:
        if name:
            starts.setdefault(name[0], []).append(name[1:])
    found = [f"{literal(start)} {other_name(rest, add)}" for start, rest in starts.items()]
    taken = "".join(f"\\U{ord(start):08X}" for start in starts)
    found.append(f"{PLAIN}{taken}] {PLAIN}]*")
    if "" not in names:
        found.append('""')
    return add(" | ".join(found))


_PRIMITIVE = {
    "ws": '(" " | "\\n" [ \\t]{0,20})?',
    "char": CHARACTER,
    "string": of_length(0, None),
    "integer": INTEGER,
    "number": NUMBER,
    "boolean": '"true" | "false"',
    "null": '"null"',
    "object": '"{" ws (string ":" " "? value ("," ws string ":" " "? value)* ws)? "}"',
    "array": '"[" ws (value ("," ws value)* ws)? "]"',
    "value": "object | array | string | number | boolean | null",
}
_NEEDS = {
    "string": ("char",),
    "object": ("value",),
    "array": ("value",),
    "value": ("ws", "string", "number", "boolean", "null", "object", "array"),
}
_IMPLIED = {
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
"""Keywords that apply to one type only. A schema with them and without `type` implies it."""
_UNSUPPORTED = ("not", "if", "contains", "uniqueItems", "multipleOf")
_UNSUPPORTED_UNLESS_EMPTY = (
    "dependentRequired", "dependentSchemas", "patternProperties", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip


def schema_grammar(schema: object, *, lenient: bool = False) -> str:
    """Return the GBNF for `schema`. Raises SchemaError.

    `lenient`: keywords that can't be enforced are ignored.
    """
    compiler = SchemaCompiler(lenient=lenient)
    return compiler.grammar(compiler.rule(schema, root=schema))


class SchemaCompiler:
    """A compiler that collects rules; equal rules are shared."""

    def __init__(self, *, lenient: bool = False) -> None:
        self._root: object = None
        self._lenient = lenient
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._references: dict[str, str] = {}

    def grammar(self, body: str) -> str:
        """Return all rules so far, with `body` as the root."""
        rules = {"root": body, **self._rules}
        return "".join(f"{name} ::= {text}\n" for name, text in rules.items())

    def rule(self, schema: object, *, root: object) -> str:
        """Return the name of a rule for `schema`. Raises SchemaError.

        References are resolved from `root`.
        """
        if root is not self._root:
            self._root, self._references = root, {}
        try:
            return self._rule(schema)
        except PatternError as error:
            raise SchemaError(str(error)) from error
        except RecursionError as error:
            raise SchemaError("The schema is nested too deeply, or refers to itself.") from error

    def add(self, body: str) -> str:
        """Return the name of a rule with this body."""
        if body in self._names:
            return self._names[body]
        name = self._reserve()
        self._rules[name], self._names[body] = body, name
        return name

    def primitive(self, name: str) -> str:
        """Return the name of a built-in rule, after adding it and the rules that it uses."""
        if name not in self._rules:
            self._rules[name] = _PRIMITIVE[name]
            for need in _NEEDS.get(name, ()):
                self.primitive(need)
        return name

    def _reserve(self) -> str:
        if len(self._rules) >= MAX_RULES - 20:
            raise SchemaError("The schema is too large for a grammar.")
        name = f"r{len(self._rules)}"
        self._rules[name] = ""
        return name

    def _rule(self, schema: object) -> str:
        if schema is True or schema == {}:
            return self.primitive("value")
        if not isinstance(schema, Mapping):
            what = "admits nothing" if schema is False else "is no object"
            raise SchemaError(f"The schema, or a part of it, {what}.")
        if isinstance(schema.get("$ref"), str) and schema.keys() <= {"$ref", *ANNOTATIONS}:
            return self._reference(schema["$ref"])
        schema = self._expand(schema)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self._union(schema, word)
        self._check_unsupported(schema)
        if "const" in schema or "enum" in schema:
            return self._literals(schema)
        types = self._types(schema)
        if not types:
            return self.primitive("value")
        return self.add(" | ".join(self._typed(kind, schema) for kind in types))

    def _expand(self, schema: Schema) -> Schema:
        """Return `schema` with its `$ref` and `allOf` merged in."""
        for _ in range(100):
            if "$ref" in schema:
                target = self._resolve(schema["$ref"])
                schema = {key: value for key, value in schema.items() if key != "$ref"}
                schema = merged(schema, target)
            elif "allOf" in schema:
                parts = schema["allOf"]
                schema = {key: value for key, value in schema.items() if key != "allOf"}
                for part in listed(parts, "allOf"):
                    schema = merged(schema, part)
            else:
                return schema
        raise SchemaError("The schema refers to itself without end.")

    def _reference(self, pointer: str) -> str:
        """Return the rule for the target of `pointer`; it is shared, so it may be recursive."""
        if pointer not in self._references:
            name = self._references[pointer] = self._reserve()
            self._rules[name] = self._rule(self._resolve(pointer))
        return self._references[pointer]

    def _resolve(self, pointer: object) -> Any:
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise SchemaError(f"The reference {pointer!r} does not lead into the schema itself.")
        place: Any = self._root
        for step in pointer.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            number = parse_natural(key)
            if isinstance(place, Mapping) and key in place:
                place = place[key]
            elif isinstance(place, list) and number is not None and number < len(place):
                place = place[number]
            else:
                raise SchemaError(f"The reference {pointer!r} leads nowhere.")
        return place

    def _union(self, schema: Schema, word: str) -> str:
        base = {key: value for key, value in schema.items() if key != word}
        branches = []
        reason: SchemaError | None = None
        for part in listed(schema[word], word):
            try:
                branches.append(self._rule(merged(base, part) if base else part))
            except SchemaError as error:  # an empty branch is dropped
                reason = error
        if reason is not None and (not branches or not reason.empty):
            raise reason
        return self.add(" | ".join(dict.fromkeys(branches)))

    def _check_unsupported(self, schema: Schema) -> None:
        for word in (*_UNSUPPORTED, *_UNSUPPORTED_UNLESS_EMPTY):
            value = schema.get(word)
            enforced = value is None or value is False
            if not enforced and word in _UNSUPPORTED_UNLESS_EMPTY:
                enforced = value is True or value == {}
            if not enforced and not self._lenient:
                raise SchemaError(f"A grammar can't enforce `{word}`.")

    def _literals(self, schema: Schema) -> str:
        values = listed(schema["enum"], "enum") if "enum" in schema else [schema["const"]]
        if "const" in schema:
            values = [value for value in values if same(value, schema["const"])]
        types = self._types(schema) if "type" in schema else []
        found = [
            literal(json.dumps(value, ensure_ascii=False))
            for value in values
            if within(value, schema) and (not types or any(of_type(value, kind) for kind in types))
        ]
        if not found:
            raise SchemaError("An `enum` or `const` admits nothing.", empty=True)
        return self.add(" | ".join(dict.fromkeys(found)))

    def _types(self, schema: Schema) -> list[str]:
        """Return the admitted types; an empty list: all of them."""
        given = schema.get("type")
        if given is None:
            return [kind for kind, words in _IMPLIED.items() if any(w in schema for w in words)]
        types = [given] if isinstance(given, str) else given
        if not isinstance(types, list) or not all(kind in TYPES for kind in types):
            raise SchemaError(f"There is no type {given!r} in JSON.")
        if not types:
            raise SchemaError("No type is left that would fit.", empty=True)
        return types

    def _typed(self, kind: str, schema: Schema) -> str:
        if kind == "object":
            return self._object(schema)
        if kind == "array":
            return self._array(schema)
        if kind == "string":
            return self._string(schema)
        if kind in {"number", "integer"}:
            return self._number(kind, schema)
        return self.primitive(kind)

    def _string(self, schema: Schema) -> str:
        least, most = count(schema, "minLength") or 0, count(schema, "maxLength")
        pattern, shape = schema.get("pattern"), schema.get("format")
        bounded = least > 0 or most is not None
        self.primitive("char")
        if pattern is not None:
            if not isinstance(pattern, str):
                raise SchemaError("A `pattern` must be a string.")
            if bounded and not self._lenient:
                raise SchemaError("A grammar can't enforce a `pattern` and a length at once.")
            return self.add(matching(pattern))
        if isinstance(shape, str) and shape in FORMATS and not bounded:
            return self.add(of_format(shape))
        if not bounded:
            return self.primitive("string")
        check_order(least, most, "maxLength")
        return self.add(of_length(least, most))

    def _number(self, kind: str, schema: Schema) -> str:
        bounds = number_bounds(schema)
        if bounds.none:
            return self.primitive(kind)
        whole = kind == "integer"
        found = integers(bounds.first, bounds.last) if whole else numbers(bounds)
        if not found:
            raise SchemaError("No number lies within the bounds of the schema.", empty=True)
        return self.add(" | ".join(found))

    def _array(self, schema: Schema) -> str:
        first, rest = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(rest, list):  # as drafts before 2020-12 wrote it
            first, rest = rest, schema.get("additionalItems", True)
        least, most = count(schema, "minItems") or 0, count(schema, "maxItems")
        check_order(least, most, "maxItems")
        self.primitive("ws")
        if not isinstance(first, list):
            raise SchemaError("`prefixItems` must be a list.")
        if rest is False:
            most = len(first) if most is None else min(most, len(first))
            check_order(least, most, "prefixItems")
        first = [self._rule(item) for item in first[:most]]
        return self.add(self._items(first, rest, least, most))

    def _items(self, first: list[str], rest: object, least: int, most: int | None) -> str:
        """Return GBNF for an array: the items in their positions, then the rest."""
        if most == 0:
            return '"[" ws "]"'
        more = ""
        if most is None or most > len(first):
            item = self._rule(rest)
            low = max(least - max(len(first), 1), 0)
            high = "" if most is None else most - max(len(first), 1)
            more = f'("," ws {item}){{{low},{high}}}'
            if not first:
                whole = f"{item} {more} ws"
                return f'"[" ws {whole} "]"' if least else f'"[" ws ({whole})? "]"'
        text = more
        for index, item in reversed(list(enumerate(first))):
            comma = '"," ws ' if index else ""
            text = f"{comma}{item} {text}"
            if index >= least:
                text = f"({text})?"
        return f'"[" ws {text} ws "]"'

    def _object(self, schema: Schema) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping):
            raise SchemaError("`properties` must be an object.")
        required = listed(required, "required", may_be_empty=True)
        if not all(isinstance(name, str) for name in required):
            raise SchemaError("`required` must be a list of names.")
        others = schema.get("additionalProperties", not properties)
        missing = [name for name in required if name not in properties]
        if missing and others is False and "additionalProperties" in schema:
            raise SchemaError(f"{missing[0]!r} is required and not allowed.", empty=True)
        other = True if others is False else others
        named = {**properties, **dict.fromkeys(missing, other)}
        needs_one = self._check_counts(schema, named, required, others)
        self.primitive("ws")
        pairs = []
        for name, value in named.items():
            must_have = name in required
            try:
                pairs.append((self._member(str(name), value), must_have))
            except SchemaError as error:
                if must_have or not error.empty:
                    raise
        more = "" if others is False else self._other_member(list(named), others)
        inside = members(pairs, more, needs_one=needs_one, add=self.add)
        if inside is None:
            raise SchemaError("An object needs a member, and none is allowed.", empty=True)
        return self.add(f'"{{" ws {inside} "}}"')

    def _check_counts(
        self, schema: Schema, named: Schema, required: list[Any], others: object
    ) -> bool:
        """Check the bounds; return True if a member is needed although none is required."""
        least, most = count(schema, "minProperties") or 0, count(schema, "maxProperties")
        too_many = most is not None and (others is not False or len(named) > most)
        if (too_many or least > max(len(required), 1)) and not self._lenient:
            word = "maxProperties" if too_many else "minProperties"
            raise SchemaError(f"A grammar can't enforce `{word}` here.")
        return least > 0 and not required

    def _member(self, name: str, value: object) -> str:
        key = literal(json.dumps(name, ensure_ascii=False))
        return self.add(f'{key} ":" " "? {self._rule(value)}')

    def _other_member(self, names: list[str], value: object) -> str:
        """Return the rule for a member of any other name."""
        rule = self._rule(value)
        plain = [name for name in names if json.dumps(name, ensure_ascii=False)[1:-1] == name]
        key = other_name(plain, self.add)
        return self.add(f'"\\"" {key} "\\"" ":" " "? {rule}')
