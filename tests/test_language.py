"""The rules of docs/glossary.md: one term a concept, plain technical English."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator

import pytest

from tests.daemon import ROOT
from tools import structure

MODULES = structure.read(ROOT, ("swapd", "workers", "tests", "bench", "tools"))
PRODUCT = [m for m in MODULES if m.name.split(".")[0] in structure.PRODUCT]

CEILING = 0.03
"""Share of docstrings that may begin with one of `structure.OPENINGS`. It only goes down."""

BANNED = frozenset(
    {
        *("told", "tells", "said", "nobody", "somebody", "whoever", "whom", "heed", "heeds"),
        *("dawdle", "lest", "wish", "wishes", "house", "books", "desk", "heir", "succession"),
        *("crowd", "patience", "sight", "sights", "outlook", "agenda", "suspects", "shelf"),
        *("lonely", "cramped", "hopeless", "reluctance", "bereft", "guilty", "wary"),
        *("passage", "tries", "stir", "dismiss", "scarcity", "verdict", "ledger", "learnings"),
    }
)
"""Words that no name has as one of its parts; docs/glossary.md has the term for each."""


@functools.cache
def _docstrings() -> tuple[structure.Docstring, ...]:
    return tuple(docstring for module in MODULES for docstring in module.docstrings())


def _identifiers(module: structure.Module) -> Iterator[tuple[int, str]]:
    """Yield the names that a module defines: classes, functions, parameters, variables, fields."""
    for node in ast.walk(module.tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield node.lineno, name
            case ast.AsyncFunctionDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name):
                yield node.lineno, name
            case ast.Name(id=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case _:
                pass


def words(name: str) -> set[str]:
    """Return the words of a name, whatever its case: `_retryAfter_s` has retry, after and s."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return {part.lower() for part in parts}


def test_no_name_has_a_banned_word() -> None:
    found = [
        f"{module.name}:{line}: {name}"
        for module in PRODUCT
        for line, name in _identifiers(module)
        if words(name) & BANNED
    ]
    assert found == []


def test_no_file_is_named_by_a_banned_word() -> None:
    assert [m.name for m in MODULES if words(m.path.stem) & BANNED] == []


@pytest.mark.parametrize("name", ["told", "_told", "TOLD_AT", "isTold", "ToldError", "was_told"])
def test_a_banned_word_is_found_in_any_spelling(name: str) -> None:
    assert words(name) & BANNED


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    product = [d for d in _docstrings() if d.module.split(".")[0] in structure.PRODUCT]
    for docstrings in (product, _docstrings()):
        poor = structure.poor_openings(docstrings)
        shown = "\n".join(f"{d.module}:{d.line}: {d.text.splitlines()[0]}" for d in poor)
        assert len(poor) / len(docstrings) <= CEILING, shown


def test_docstrings_use_plain_words() -> None:
    poor = structure.poor_words(_docstrings())
    assert [f"{d.module}:{d.line}: {d.text.splitlines()[0]}" for d in poor] == []


def test_every_docstring_is_looked_at() -> None:
    source = '''
"""Who."""
class A:
    """What."""
    x = 1
    """How."""
    def f(self):
        """When."""
        "told"
'''
    module = structure.Module.of_text("m", source)
    assert [d.first_word for d in module.docstrings()] == ["who", "what", "how", "when"]
    assert len(structure.poor_openings(module.docstrings())) == 4
