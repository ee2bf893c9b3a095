"""From a JSON schema to a grammar in which every text is a JSON value that the schema admits.

The other way round it need not hold: members come in the schema's order and not in any other,
numbers have 16 digits, and an object that names its properties has only these unless
`additionalProperties` asks for more. Keywords as in JSON Schema 2020-12, and OpenAPI's habits
where they differ in nothing. `oneOf` is taken as `anyOf`. What would admit values that the
schema does not (`not`, `if`, `uniqueItems` and their like) is refused, or left out if `lenient`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from workers.gbnf import MOST_RULES, literal
from workers.json_keywords import (
    ANNOTATIONS,
    TYPES,
    Schema,
    SchemaError,
    check_order,
    count,
    listed,
    merged,
    number_bounds,
    of_type,
    same,
    within,
)
from workers.json_numbers import INTEGER, NUMBER, integers, numbers
from workers.json_objects import members, other_name
from workers.json_strings import CHARACTER, FORMATS, PatternError, matching, of_format, of_length
from workers.numerals import natural

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
"""Keywords that say nothing about other types. Who uses them without `type` means this one."""
_NEVER = ("not", "if", "contains", "uniqueItems", "multipleOf")
_UNLESS_EMPTY = (
    "dependentRequired", "dependentSchemas", "patternProperties", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip


def schema_grammar(schema: object, *, lenient: bool = False) -> str:
    """The GBNF for `schema`. Raises SchemaError.

    `lenient`: what can't be enforced is left out instead of refused.
    """
    compiler = SchemaCompiler(lenient=lenient)
    return compiler.grammar(compiler.rule(schema, root=schema))


class SchemaCompiler:
    """Rules as they are found; the same rule is written once."""

    def __init__(self, *, lenient: bool = False) -> None:
        self._root: object = None
        self._lenient = lenient
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._references: dict[str, str] = {}

    def grammar(self, body: str) -> str:
        """All rules so far, and `body` as the root."""
        rules = {"root": body, **self._rules}
        return "".join(f"{name} ::= {text}\n" for name, text in rules.items())

    def rule(self, schema: object, *, root: object) -> str:
        """The name of a rule for `schema`, whose references start from `root`.

        Raises SchemaError.
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
        """The name of a rule `body`."""
        if body in self._names:
            return self._names[body]
        name = self._reserve()
        self._rules[name], self._names[body] = body, name
        return name

    def primitive(self, name: str) -> str:
        """The name of a rule of JSON's own, with all that it needs."""
        if name not in self._rules:
            self._rules[name] = _PRIMITIVE[name]
            for need in _NEEDS.get(name, ()):
                self.primitive(need)
        return name

    def _reserve(self) -> str:
        if len(self._rules) >= MOST_RULES - 20:
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
        schema = self._whole(schema)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self._union(schema, word)
        self._check_refused(schema)
        if "const" in schema or "enum" in schema:
            return self._literals(schema)
        types = self._types(schema)
        if not types:
            return self.primitive("value")
        return self.add(" | ".join(self._typed(kind, schema) for kind in types))

    def _whole(self, schema: Schema) -> Schema:
        """`schema` with its `$ref` and `allOf` worked in."""
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
        """A rule for what `pointer` names: one for all who do, so it may contain itself."""
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
            number = natural(key)
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
            except SchemaError as error:  # one that nothing fits is no choice
                reason = error
        if reason is not None and (not branches or not reason.empty):
            raise reason
        return self.add(" | ".join(dict.fromkeys(branches)))

    def _check_refused(self, schema: Schema) -> None:
        for word in (*_NEVER, *_UNLESS_EMPTY):
            value = schema.get(word)
            enforced = value is None or value is False
            if not enforced and word in _UNLESS_EMPTY:
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
        """The types that are admitted; none: all of them."""
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
        """`[`, the items in their places, the rest of them, `]`."""
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
            must = name in required
            try:
                pairs.append((self._member(str(name), value), must))
            except SchemaError as error:
                if must or not error.empty:
                    raise
        more = "" if others is False else self._other_member(list(named), others)
        inside = members(pairs, more, needs_one=needs_one, add=self.add)
        if inside is None:
            raise SchemaError("An object needs a member, and none is allowed.", empty=True)
        return self.add(f'"{{" ws {inside} "}}"')

    def _check_counts(
        self, schema: Schema, named: Schema, required: list[Any], others: object
    ) -> bool:
        """Whether there must be at least one member, though none is required."""
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
        """A member of any other name."""
        rule = self._rule(value)
        plain = [name for name in names if json.dumps(name, ensure_ascii=False)[1:-1] == name]
        key = other_name(plain, self.add)
        return self.add(f'"\\"" {key} "\\"" ":" " "? {rule}')
