"""The plan of the house, kept: who may import whom, and what stands where."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import ROOT

ROOMS = {
    "swapd.words": set[str](),
    "swapd.core": {"swapd.words"},
    "swapd.simulation": {"swapd.words", "swapd.core"},
    "swapd.config": {"swapd.words"},
    "swapd.effects": {"swapd.words"},
    "swapd.home": {"swapd.words"},
    "swapd.lease": {"swapd.words", "swapd.effects"},
    "swapd.supervisor": {
        *("swapd.words", "swapd.core", "swapd.config", "swapd.effects", "swapd.lease"),
    },
    "swapd.doors": {
        *("swapd.words", "swapd.core", "swapd.config", "swapd.effects"),
        *("swapd.home", "swapd.lease", "swapd.supervisor", "swapd.simulation"),
    },
    "swapd.__main__": {"swapd.doors"},
    "swapd": set[str](),
    "workers": set[str](),
    "bench": {"swapd", "workers"},
    "demo": set[str](),
}
"""For each room, what it may import of ours beside itself."""

CORE_MAY = {
    *("__future__", "bisect", "collections", "dataclasses", "enum", "heapq", "math"),
    *("types", "typing"),
}


def _files(*folders: str) -> Iterator[tuple[str, Path]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(p for p in parts if p != "__init__"), path


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(module: str) -> str | None:
    """The longest name of a room that the module is or lies in; None for what is not ours."""
    inside = [r for r in ROOMS if module == r or module.startswith(f"{r}.")]
    return max(inside, key=len, default=None)


def breaches(module: str, imported: Iterator[str]) -> list[str]:
    """Imports of a module that the plan forbids."""
    room = _room(module)
    assert room is not None, f"{module} stands in no room"
    told = []
    for name in imported:
        target = _room(name)
        # `swapd` itself is the version alone; a name taken from a package is looked up as such.
        if target is None or target in (room, "swapd"):
            continue
        allowed = ROOMS[room]
        if target not in allowed and target.split(".")[0] not in allowed:
            told.append(f"{module} imports {name}")
    return told


def test_nobody_imports_what_the_plan_forbids() -> None:
    told = [
        b
        for module, path in _files("swapd", "workers", "bench", "demo")
        for b in breaches(module, _imports(path))
    ]
    assert told == []


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("swapd.scheduler.eviction", "swapd.system.aio"),
        ("swapd.domain.events", "swapd.scheduler.state"),
        ("swapd.config.load", "swapd.scheduler.scheduler"),
        ("swapd.process.worker_process", "swapd.supervisor"),
        ("swapd.supervisor", "swapd.http.app"),
        ("workers.engine", "swapd.domain.models"),
        ("swapd.process.worker_process", "workers.serve"),
    ],
)
def test_a_breach_is_seen(module: str, imported: str) -> None:
    assert breaches(module, iter([imported])) == [f"{module} imports {imported}"]


def test_the_core_knows_only_itself_and_a_few_pure_modules() -> None:
    for _, path in _files("swapd/core", "swapd/words"):
        outside = {name.split(".")[0] for name in _imports(path)} - {"swapd"}
        assert outside <= CORE_MAY, f"{path.name}: {outside - CORE_MAY}"


def test_only_the_binding_imports_llama_cpp() -> None:
    importers = {
        module
        for module, path in _files("swapd", "workers")
        if any(name.split(".")[0] == "llama_cpp" for name in _imports(path))
    }
    assert importers == {"workers.binding"}


def test_the_daemon_stays_small() -> None:
    """What only the command line, sync or a worker need is not loaded by the daemon."""
    import subprocess
    import sys

    code = "import sys, swapd.daemon; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"swapd.library.discovery", "swapd.doors.cli", "huggingface_hub"}
    assert not loaded & {"typer", "rich", "numpy", "gguf", "llama_cpp", "jinja2", "workers"}
