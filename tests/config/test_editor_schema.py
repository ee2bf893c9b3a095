"""Schemas for editors: up to date, and in agreement with the program."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from swapd.config.custom_models import parse_custom_models
from swapd.config.editor_schema import config_schema, custom_schema, meanings
from swapd.config.errors import ConfigError
from tests.config.test_bad_input import FAULTS
from tests.config.test_load import LLAMA_SWAP
from tests.library.test_sync import CUSTOM

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "config.example.yaml").read_text(encoding="utf-8")
SHIPPED = (ROOT / "custom_models.yaml").read_text(encoding="utf-8")
CONFIG_SCHEMA = config_schema(EXAMPLE)
CUSTOM_SCHEMA = custom_schema(EXAMPLE, SHIPPED)
_TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "number": (int, float),
    "integer": int, "null": type(None),
}  # fmt: skip


def fits(value: Any, schema: dict[str, Any], top: dict[str, Any]) -> bool:
    """Return True if a value fits a schema; supports the keywords that the two schemas use."""
    unknown = schema.keys() - {
        "$schema", "title", "definitions", "description", "default", "type", "properties",
        "additionalProperties", "patternProperties", "required", "anyOf", "$ref", "items", "enum",
        "pattern", "minimum", "maximum", "minLength", "exclusiveMinimum",
        "deprecationMessage",
    }  # fmt: skip
    assert not unknown, unknown
    if "$ref" in schema:
        return fits(value, top["definitions"][schema["$ref"].rpartition("/")[2]], top)
    kinds = schema.get("type", list(_TYPES))
    return (
        ("anyOf" not in schema or any(fits(value, one, top) for one in schema["anyOf"]))
        and any(_is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))
        and ("enum" not in schema or value in schema["enum"])
        and (not isinstance(value, str) or _text_fits(value, schema))
        and (not _is(value, "number") or _number_fits(value, schema))
        and (not isinstance(value, dict) or _section_fits(value, schema, top))
        and all(
            fits(item, schema.get("items", {}), top)
            for item in (value if isinstance(value, list) else ())
        )
    )


def _text_fits(value: str, schema: dict[str, Any]) -> bool:
    long_enough = len(value) >= int(schema.get("minLength", 0))
    return long_enough and bool(re.search(schema.get("pattern", ""), value))


def _number_fits(value: float, schema: dict[str, Any]) -> bool:
    within = schema.get("minimum", value) <= value <= schema.get("maximum", value)
    return bool(within and value > schema.get("exclusiveMinimum", value - 1))


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind]) or (
        kind == "integer" and isinstance(value, float) and value.is_integer()
    )


def _section_fits(value: dict[str, Any], schema: dict[str, Any], top: dict[str, Any]) -> bool:
    for key, item in value.items():
        subschema = schema.get("properties", {}).get(key)
        if subschema is None:
            patterns = schema.get("patternProperties", {}).items()
            subschema = next((s for pattern, s in patterns if re.search(pattern, str(key))), None)
        if subschema is None:
            subschema = schema.get("additionalProperties", True)
        if subschema is False or (isinstance(subschema, dict) and not fits(item, subschema, top)):
            return False
    return all(key in value for key in schema.get("required", ()))


@pytest.mark.parametrize(
    ("name", "schema"),
    [("config.schema.json", CONFIG_SCHEMA), ("custom_models.schema.json", CUSTOM_SCHEMA)],
)
def test_the_committed_schemas_are_current(name: str, schema: dict[str, Any]) -> None:
    committed = (ROOT / "docs" / name).read_text(encoding="utf-8")
    current = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    assert committed == current, f"write this to docs/{name}:\n{current}"


def test_every_key_has_a_description() -> None:
    descriptions = meanings(EXAMPLE)
    assert descriptions["host",] == "overridden by SWAPD_HOST"
    assert descriptions["models", "example", "need"] == (
        "memory to reserve until it has been measured; 0: an estimate from the file after --model"
        " and from llama-server's flags"
    )
    assert descriptions["models", "example", "cmd"].startswith(
        "The command that serves the model, split"
    )
    for schema in (CONFIG_SCHEMA, CUSTOM_SCHEMA):
        for section in (schema, *schema["definitions"].values()):
            for key, one in section["properties"].items():
                assert one.get("description") or "$ref" in one, key
    adapters = CUSTOM_SCHEMA["definitions"]["Model"]["properties"]["adapters"]
    assert adapters["description"].startswith("LoRA adapters, NAME: PATH; clients select")


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        (EXAMPLE, CONFIG_SCHEMA), (LLAMA_SWAP, CONFIG_SCHEMA), (SHIPPED, CUSTOM_SCHEMA),
        (
            re.sub(r"(?m)^# ?", "", SHIPPED.partition("replace the line above:\n#\n")[2]),
            CUSTOM_SCHEMA,
        ),
        (CUSTOM, CUSTOM_SCHEMA), ("", CUSTOM_SCHEMA),
        ("port: ${env.X}\nlogLevel: ${env.X}\nmodels: {}", CONFIG_SCHEMA),
        ("x-a: {b: 1}\nmodels: {a: {cmd: x, need: 5, ttl: null, name: 1.5}}", CONFIG_SCHEMA),
        ("models: {a: {adapters: {b: c}, chat_template_kwargs: {d: [1]}}}", CUSTOM_SCHEMA),
    ],
)  # fmt: skip
def test_the_schema_accepts_files_that_the_program_accepts(
    text: str, schema: dict[str, Any]
) -> None:
    assert fits(yaml.safe_load(text) or {}, schema, schema)


def test_the_schema_rejects_wrong_keys_and_types_as_the_program_does() -> None:
    checked = 0
    for text, sentence in FAULTS:
        kinds = "unknown key|must be (seconds|a whole|a section|true|a list|debug)"
        if not re.search(kinds, sentence) or "--parallel" in sentence:
            # The schema does not check the content of command lines.
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            continue
        assert not fits(value, CONFIG_SCHEMA, CONFIG_SCHEMA), sentence
        checked += 1
    assert checked > 8


@pytest.mark.parametrize(
    "text", ["ctx_sise: 3", "ctx_size: -1", "ctx_size: 1.5", "adapters: [a]", "adapters: {a: [b]}",
             "jinja: maybe", "ttl: -2", "aliases: a", "filters: {strip: a}", "base_model: [a]"]
)  # fmt: skip
def test_schema_and_program_both_reject(text: str) -> None:
    full = f"models:\n  a:\n    {text}"
    assert not fits(yaml.safe_load(full), CUSTOM_SCHEMA, CUSTOM_SCHEMA)
    with pytest.raises(ConfigError):
        parse_custom_models(full, {})
