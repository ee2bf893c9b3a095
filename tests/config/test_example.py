"""Agreement of the shipped example files with the code."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from swapd.config.custom_models import parse_custom_models
from swapd.config.decode import Diagnostics, field_shapes
from swapd.config.decode import decode as read_section
from swapd.config.env import find_stores, sync_settings
from swapd.config.schema import (
    CorsConfig,
    CustomModelConfig,
    FiltersConfig,
    LimitsConfig,
    MemoryConfig,
    ModelConfig,
    ServerConfig,
    TlsConfig,
)
from swapd.config.yaml_nodes import MappingNode, node_at, parse_tree
from tests.config.reading import read

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "config.example.yaml").read_text(encoding="utf-8")
SECTIONS: list[tuple[type[msgspec.Struct], tuple[str, ...], set[str]]] = [
    (ServerConfig, (), {"models"}),
    (MemoryConfig, ("memory",), set()),
    (CorsConfig, ("cors",), set()),
    (TlsConfig, ("tls",), set()),
    (ModelConfig, ("models", "example"), set()),
    (LimitsConfig, ("models", "example", "limits"), set()),
    (FiltersConfig, ("models", "example", "filters"), set()),
]


@pytest.mark.parametrize(("struct", "path", "beside"), SECTIONS)
def test_the_example_has_every_key_with_its_default(
    struct: type[msgspec.Struct], path: tuple[str, ...], beside: set[str]
) -> None:
    tree, problems = parse_tree(EXAMPLE, "config.example.yaml")
    section = node_at(tree, path)
    assert isinstance(section, MappingNode)
    effective = {name for name, shape in field_shapes(struct).items() if not shape.inert}
    assert set(section.entries) == effective | beside
    report = Diagnostics("config.example.yaml", tree, problems)
    found = read_section(struct, section, path, report, {}, beside=frozenset(beside | {"cmd"}))
    assert found == struct()
    assert report.problems == []


def test_the_example_names_every_key_without_effect() -> None:
    _, _, tail = EXAMPLE.partition("each is accepted with a warning\n")
    named = {
        (*where, key)
        for where, keys in (
            ((), re.search(r"at the top:([^:]*)#   of a model", tail)),
            (("models", "example"), re.search(r"of a model:(.*)", tail)),
            (("models", "example", "filters"), re.search(r"of filters:(.*)", tail)),
        )
        for key in (keys[1].replace("#", "").split() if keys else [])
    }
    assert named == {
        (*path, name)
        for struct, path, _ in SECTIONS
        for name, shape in field_shapes(struct).items()
        if shape.inert
    }


def test_the_example_names_every_variable_with_its_default() -> None:
    documented = dict(re.findall(r"(?m)^#   ([A-Z_]{5,})=(\S*)", EXAMPLE))
    code = (ROOT / "swapd/config/env.py").read_text(encoding="utf-8")
    used = set(re.findall(r'"([A-Z][A-Z_]{4,})"', code))
    assert used <= documented.keys() | {"HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"}
    assert {name for name in used if name not in EXAMPLE} == set()
    assert sync_settings({**documented, "HOME": "/h"}) == replace(
        sync_settings({"HOME": "/h"}),
        stores=find_stores({**documented, "HOME": "/h"}),
    )
    usual, explicit = find_stores({"HOME": "/h"}), find_stores({**documented, "HOME": "/h"})
    assert (explicit.models_dir, explicit.hub) == (usual.models_dir, usual.hub)
    assert explicit.ollama == usual.ollama[:1]


def test_the_example_loads_with_the_default_values() -> None:
    loaded, empty = read(EXAMPLE), read("models: {}")
    assert loaded.warnings == ()
    assert (loaded.settings, loaded.catalog.limits) == (empty.settings, empty.catalog.limits)
    assert loaded.catalog.models["example"].launch.builtin


def test_the_shipped_custom_models_are_empty_and_their_examples_are_valid() -> None:
    text = (ROOT / "custom_models.yaml").read_text(encoding="utf-8")
    assert not parse_custom_models(text, {}).models
    _, _, tail = text.partition("replace the line above:\n#\n")
    custom = parse_custom_models(re.sub(r"(?m)^# ?", "", tail), {})
    assert list(custom.models) == [
        "bard", "gemma3:27.4b-q8_0", "gemma-short", "codestral:22.2b-q8_0", "whisper",
    ]  # fmt: skip
    documented = set(re.findall(r"(?m)^#   ([a-z_]+)  ", text.partition("\nmodels:")[0]))
    assert documented == set(field_shapes(CustomModelConfig)) - set(field_shapes(ModelConfig))
    assert custom.warnings == ()
