"""JSON schemas of config.yaml and custom_models.yaml, for editors. Pure.

Types and bounds come from the structs that the files are read with, so that schema and
program always agree. Descriptions are the comments beside the keys in config.example.yaml and
custom_models.yaml.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping as MappingType
from pathlib import Path
from typing import Any

import msgspec

from swapd.config.decode import field_shapes
from swapd.config.schema import (
    CorsConfig,
    CustomModelConfig,
    FiltersConfig,
    HooksConfig,
    LimitsConfig,
    MemoryConfig,
    ModelConfig,
    OnStartupConfig,
    ServerConfig,
    TlsConfig,
)
from swapd.config.yaml_nodes import MappingNode, parse_tree

DRAFT = "http://json-schema.org/draft-07/schema#"
"""Draft with the best support in YAML's language server."""
_EXAMPLE = "example"
"""The model in config.example.yaml."""
_FROM_ENV = {"type": "string", "pattern": r"\$\{env\.[^}]*\}"}
_CMD = (
    "the command that serves it, instead of the built-in worker: ${MODEL_PATH} is the "
    "model's file, ${MMPROJ_PATH} its projector, ${PORT} a free port"
)
_CUSTOM_KEY = re.compile(r"^#   ([a-z_]+) {2,}(.+)$", re.MULTILINE)


def config_schema(example: str) -> dict[str, Any]:
    """Return the schema of config.yaml; `example` is the text of config.example.yaml."""
    descriptions = meanings(example)
    return _schema("swapd: config.yaml", ModelConfig, descriptions, required=["models"])


def custom_schema(example: str, custom: str) -> dict[str, Any]:
    """Return the schema of custom_models.yaml; `custom` is the text of the shipped file."""
    descriptions = dict(meanings(example))
    for key, meaning in _CUSTOM_KEY.findall(custom.partition("\nmodels:")[0]):
        descriptions["models", _EXAMPLE, key] = meaning
    descriptions["models", _EXAMPLE, "cmd"] = _CMD
    return _schema("swapd: custom_models.yaml", CustomModelConfig, descriptions, required=[])


def meanings(example: str) -> MappingType[tuple[str, ...], str]:
    """Return the description of each key in the example, by its path.

    It is the comment after the key, with its further lines below; else the paragraph above it.
    """
    tree, _ = parse_tree(example, "config.example.yaml")
    lines = example.splitlines()
    found: dict[tuple[str, ...], str] = {}

    def walk(section: MappingNode, path: tuple[str, ...]) -> None:
        for key, entry in section.entries.items():
            here = (*path, key)
            meaning = _behind(lines, entry.line) or _above(lines, entry.line)
            if meaning:
                found[here] = meaning
            if isinstance(entry.node, MappingNode):
                walk(entry.node, here)

    walk(tree, ())
    return found


def _behind(lines: list[str], line: int) -> str:
    match = re.search(r"\s#\s+(.*)$", lines[line - 1])
    if match is None:
        return ""
    column = lines[line - 1].index("#", match.start())
    parts = [match[1]]
    for more in lines[line:]:
        if len(more) - len(more.lstrip()) != column or not more.lstrip().startswith("#"):
            break
        parts.append(more.lstrip()[1:].strip())
    return " ".join(parts)


def _above(lines: list[str], line: int) -> str:
    """Return the first paragraph of the comment directly above the line."""
    block: list[str] = []
    for text in reversed(lines[: line - 1]):
        if not text.lstrip().startswith("#") or text.lstrip().startswith("# ---"):
            break
        block.insert(0, text.lstrip()[1:].strip())
    paragraph: list[str] = []
    for text in block:
        if not text:
            break
        paragraph.append(text)
    return " ".join(paragraph)


def _schema(
    title: str,
    model: type[msgspec.Struct],
    descriptions: MappingType[tuple[str, ...], str],
    required: list[str],
) -> dict[str, Any]:
    _, parts = msgspec.json.schema_components(
        [
            ServerConfig,
            model,
            MemoryConfig,
            HooksConfig,
            OnStartupConfig,
            LimitsConfig,
            FiltersConfig,
            CorsConfig,
            TlsConfig,
        ],
        ref_template="#/definitions/{name}",
    )
    definitions = {
        "MemoryConfig": _section(MemoryConfig, parts["MemoryConfig"], descriptions, ("memory",)),
        "HooksConfig": _section(HooksConfig, parts["HooksConfig"], descriptions, ("hooks",)),
        "OnStartupConfig": _section(
            OnStartupConfig, parts["OnStartupConfig"], descriptions, ("hooks", "on_startup")
        ),
        "CorsConfig": _section(CorsConfig, parts["CorsConfig"], descriptions, ("cors",)),
        "TlsConfig": _section(TlsConfig, parts["TlsConfig"], descriptions, ("tls",)),
        "Model": _section(model, parts[model.__name__], descriptions, ("models", _EXAMPLE)),
        "LimitsConfig": _section(
            LimitsConfig, parts["LimitsConfig"], descriptions, ("models", _EXAMPLE, "limits")
        ),
        "FiltersConfig": _section(
            FiltersConfig, parts["FiltersConfig"], descriptions, ("models", _EXAMPLE, "filters")
        ),
    }
    top = _section(ServerConfig, parts["ServerConfig"], descriptions, ())
    top["properties"]["models"] = {
        "description": "the models, by the names that clients use",
        "type": ["object", "null"],
        "additionalProperties": {"$ref": "#/definitions/Model"},
    }
    anchors = {"^x-": {"description": "a place for YAML anchors, used elsewhere"}}
    return {
        "$schema": DRAFT,
        "title": title,
        **top,
        "properties": dict(sorted(top["properties"].items())),
        "patternProperties": anchors,
        "required": required,
        "definitions": definitions,
    }


def _section(
    struct: type[msgspec.Struct],
    made: dict[str, Any],
    descriptions: MappingType[tuple[str, ...], str],
    path: tuple[str, ...],
) -> dict[str, Any]:
    """Return the schema of a section: the keys that the decoder accepts and no others."""
    properties = {}
    for key, shape in sorted(field_shapes(struct).items()):
        shown = made["properties"][key]
        wants = shape.wants
        if shape.inert:
            properties[key] = {"description": f"accepted, without effect yet: {shape.inert}"}
            continue
        if shape.nested is not None:
            properties[key] = {"$ref": f"#/definitions/{shape.nested.__name__}"}
            continue
        meaning = descriptions.get((*path, key), "")
        described = f"{meaning} ({wants})" if meaning and wants else meaning or wants
        properties[key] = {"description": described, **_lenient(shown)}
        if shown.get("default") is not None:
            properties[key]["default"] = shown["default"]
        if shape.also:
            properties[shape.also] = properties[key]
        if shape.formerly:
            properties[shape.formerly] = {**properties[key], "deprecationMessage": f"use {key}"}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _lenient(made: dict[str, Any]) -> dict[str, Any]:
    """Return a value's schema extended by the other forms that the decoder accepts.

    These are null for the default, a number in place of text, and a variable of the environment
    in place of any value.
    """
    plain = {key: made[key] for key in made.keys() - {"description", "default", "anyOf"}}
    choices = [_wide(part) for part in made.get("anyOf", [plain])]
    known = {str(choice) for choice in choices}
    extra = [part for part in ({"type": "null"}, _FROM_ENV) if str(part) not in known]
    if any("string" in choice.get("type", ()) and "enum" not in choice for choice in choices):
        extra = [part for part in extra if part is not _FROM_ENV]
    return {"anyOf": [*choices, *extra]}


def _wide(part: dict[str, Any]) -> dict[str, Any]:
    wide = {key: part[key] for key in sorted(part.keys() - {"description"})}
    if wide.get("type") == "string":
        wide["type"] = ["string", "number", "boolean"]
    for inner in ("items", "additionalProperties"):
        if isinstance(wide.get(inner), dict):
            wide[inner] = _wide(wide[inner])
    if "anyOf" in wide:
        wide["anyOf"] = [_wide(inner) for inner in wide["anyOf"]]
    return wide


def write_schemas(root: Path) -> None:
    """Write the schemas to `docs` below the checkout's `root`: `make schemas`."""
    example = (root / "config.example.yaml").read_text(encoding="utf-8")
    shipped = (root / "custom_models.yaml").read_text(encoding="utf-8")
    made = {
        "config.schema.json": config_schema(example),
        "custom_models.schema.json": custom_schema(example, shipped),
    }
    for name, schema in made.items():
        text = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        (root / "docs" / name).write_text(text, encoding="utf-8")
