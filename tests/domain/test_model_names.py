"""Names as people spell them."""

from __future__ import annotations

import time
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.domain.model_names import AmbiguousName, SpellingIndex, resolve
from swapd.domain.models import Catalog, ModelSpec
from tests.config.reading import model
from tests.specs import model_spec


def catalog(**models: tuple[str, ...]) -> Catalog:
    specs = {name: model_spec(name, ("x",), aliases=also) for name, also in models.items()}
    return Catalog(MappingProxyType(specs))


MODELS = catalog(
    **{
        "bard": (),
        "ls/gemma3:27.4b-q8_0": ("gemma3:27.4b-q8_0", "gemma3:27b"),
        "ls/gemma3:4.3b-q4_k_m": ("gemma3:4.3b-q4_k_m", "gemma3:4b"),
        "ls/mistral:7.2b-q4_0": ("mistral:latest", "mistral:7b"),
        "ls/phi-gguf:phi-2-q4": ("phi-gguf:phi-2-q4", "thebloke/phi-gguf:q4_0"),
        "ls/gro-es-modell:-n-x": (),
        "Case": (),
        "case": ("CASE2",),
    }
)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("bard", "bard"), ("ls/bard", "bard"), ("LS/Bard.GGUF", "bard"), (" bard ", "bard"),
        ("gemma3:27b", "ls/gemma3:27.4b-q8_0"), ("ls/gemma3:27b", "ls/gemma3:27.4b-q8_0"),
        ("Gemma3-27.4B-Q8_0.gguf", "ls/gemma3:27.4b-q8_0"), ("gemma3-4b", "ls/gemma3:4.3b-q4_k_m"),
        ("mistral", "ls/mistral:7.2b-q4_0"), ("mistral:latest", "ls/mistral:7.2b-q4_0"),
        ("phi-2-q4.gguf", "ls/phi-gguf:phi-2-q4"), ("phi-gguf", "ls/phi-gguf:phi-2-q4"),
        ("hf:TheBloke/phi-GGUF:Q4_0", "ls/phi-gguf:phi-2-q4"),
        ("hf.co/thebloke/phi-gguf:q4_0", "ls/phi-gguf:phi-2-q4"),
        ("Großes Modell:ÜN X", "ls/gro-es-modell:-n-x"),
        ("Case", "Case"), ("case", "case"), ("case2", "case"),
    ],
)  # fmt: skip
def test_a_name_is_found_as_people_spell_it(asked: str, meant: str | None) -> None:
    found = resolve(asked, MODELS)
    assert (found.name if isinstance(found, ModelSpec) else found) == meant


@pytest.mark.parametrize(
    "asked",
    ["", " ", "../bard", "ls/../bard", "..\\bard", "/bard", "~/bard", "bard\0", "b\nard", "bar",
     "other/bard", "gemma3:latest", "phi-2-q4", "gemma3:", "-----", "Ünï", "b" * 600,
     "ls/ls/bard"],
)  # fmt: skip
def test_what_is_no_name_of_a_model_means_none(asked: str) -> None:
    assert resolve(asked, MODELS) is None


@pytest.mark.parametrize(
    ("asked", "candidates"),
    [
        ("gemma3", ("ls/gemma3:27.4b-q8_0", "ls/gemma3:4.3b-q4_k_m")),
        ("ls/Gemma3", ("ls/gemma3:27.4b-q8_0", "ls/gemma3:4.3b-q4_k_m")),
        ("CASE", ("Case", "case")),
    ],
)
def test_what_several_could_mean_is_told_with_all_of_them(
    asked: str, candidates: tuple[str, ...]
) -> None:
    found = resolve(asked, MODELS)
    assert found == AmbiguousName(asked, candidates)
    assert str(found) == f"{asked} could mean any of {', '.join(candidates)}; say which"


def test_another_prefix_is_known_by_its_models_or_by_name() -> None:
    models = catalog(**{"my/bard": (), "alice": ()})
    assert resolve("bard", models) == models.models["my/bard"]
    assert resolve("my/alice", models) == models.models["alice"]
    assert resolve("ls/alice", models, prefix="") is None
    assert resolve("x/alice", models, prefix="x/") == models.models["alice"]


@given(st.text(max_size=40))
def test_any_text_means_a_model_of_the_catalog_or_none(asked: str) -> None:
    found = resolve(asked, MODELS)
    if isinstance(found, AmbiguousName):
        assert set(found.candidates) <= set(MODELS.models)
    elif found is not None:
        assert MODELS.models[found.name] is found


def test_an_exact_name_costs_nothing_and_others_little() -> None:
    names = {f"ls/m{i}:7b-q{i}": (f"m{i}:7b-q{i}", f"m{i}:7b") for i in range(500)}
    big = catalog(**names)
    start = time.perf_counter()
    for _ in range(1000):
        resolve("m7:7b", big)
    exact = time.perf_counter() - start
    spellings = SpellingIndex(names)
    start = time.perf_counter()
    assert spellings.find("M499-7B") == "ls/m499:7b-q499"
    assert time.perf_counter() - start < 0.01
    assert exact < 0.05


def test_pinned_and_preload_come_from_the_file() -> None:
    spec = model("models: {a: {cmd: 'x ${PORT}', pinned: true, preload: yes}}")
    assert (spec.serving.pinned, spec.serving.preload) == (True, True)
