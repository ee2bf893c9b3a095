"""Resolution of model names: exact names, aliases and other spellings."""

from __future__ import annotations

import time
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.domain.model_names import PREFIX, AmbiguousName, ModelNames, SpellingIndex
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


def lookup(
    asked: str, models: Catalog = MODELS, prefix: str = PREFIX
) -> ModelSpec | AmbiguousName | None:
    return ModelNames(models, prefix).lookup(asked)


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
def test_a_name_is_found_by_its_usual_spellings(asked: str, meant: str | None) -> None:
    found = lookup(asked)
    assert (found.name if isinstance(found, ModelSpec) else found) == meant


@pytest.mark.parametrize(
    "asked",
    ["", " ", "../bard", "ls/../bard", "..\\bard", "/bard", "~/bard", "bard\0", "b\nard", "bar",
     "other/bard", "gemma3:latest", "phi-2-q4", "gemma3:", "-----", "Ünï", "b" * 600,
     "ls/ls/bard"],
)  # fmt: skip
def test_a_text_that_names_no_model_is_not_found(asked: str) -> None:
    assert lookup(asked) is None


@pytest.mark.parametrize(
    ("asked", "candidates"),
    [
        ("gemma3", ("ls/gemma3:27.4b-q8_0", "ls/gemma3:4.3b-q4_k_m")),
        ("ls/Gemma3", ("ls/gemma3:27.4b-q8_0", "ls/gemma3:4.3b-q4_k_m")),
        ("CASE", ("Case", "case")),
    ],
)
def test_an_ambiguous_name_is_reported_with_its_candidates(
    asked: str, candidates: tuple[str, ...]
) -> None:
    found = lookup(asked)
    assert found == AmbiguousName(asked, candidates)
    assert str(found) == f"{asked} could mean any of {', '.join(candidates)}; say which"


def test_another_prefix_comes_from_the_names_or_the_settings() -> None:
    models = catalog(**{"my/bard": (), "alice": ()})
    assert lookup("bard", models) == models.models["my/bard"]
    assert lookup("my/alice", models) == models.models["alice"]
    assert lookup("ls/alice", models, prefix="") is None
    assert lookup("x/alice", models, prefix="x/") == models.models["alice"]


@given(st.text(max_size=40))
def test_any_text_resolves_to_models_of_the_catalog_or_to_none(asked: str) -> None:
    found = lookup(asked)
    if isinstance(found, AmbiguousName):
        assert set(found.candidates) <= set(MODELS.models)
    elif found is not None:
        assert MODELS.models[found.name] is found


def test_exact_names_are_found_fast_and_other_spellings_fast_enough() -> None:
    names = {f"ls/m{i}:7b-q{i}": (f"m{i}:7b-q{i}", f"m{i}:7b") for i in range(500)}
    big = catalog(**names)
    exact_names = ModelNames(big)
    start = time.perf_counter()
    for _ in range(1000):
        exact_names.lookup("m7:7b")
    exact = time.perf_counter() - start
    spellings = SpellingIndex(names)
    start = time.perf_counter()
    assert spellings.find("M499-7B") == "ls/m499:7b-q499"
    assert time.perf_counter() - start < 0.01
    assert exact < 0.05


def test_pinned_and_preload_come_from_the_file() -> None:
    spec = model("models: {a: {cmd: 'x ${PORT}', pinned: true, preload: yes}}")
    assert (spec.serving.pinned, spec.serving.preload) == (True, True)
