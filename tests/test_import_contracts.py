"""The layers of docs/architecture.md: which package may import which, and no cycles."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterable

import pytest

from tests.daemon import ROOT
from tools import structure

LAYERS: dict[str, set[str]] = {
    "swapd": set(),
    "swapd.domain": set(),
    "swapd.system": {"swapd.domain"},
    "swapd.paths": set(),
    "swapd.gguf": {"swapd.domain", "swapd.system"},
    "swapd.config": {"swapd.domain", "swapd.system", "swapd.gguf"},
    "swapd.library": {
        *("swapd.domain", "swapd.system", "swapd.gguf", "swapd.config", "swapd.paths"),
        "swapd.process.memory",
    },
    "swapd.scheduler": {"swapd.domain"},
    "swapd.store": {"swapd.domain", "swapd.scheduler"},
    "swapd.simulation": {"swapd.domain", "swapd.scheduler"},
    "swapd.process": {"swapd.domain", "swapd.system", "workers.protocol"},
    "swapd.leases": {"swapd.domain", "swapd.system", "swapd.process", "workers.protocol"},
    "swapd.supervisor": {
        *("swapd.domain", "swapd.system", "swapd.config", "swapd.scheduler", "swapd.process"),
        *("swapd.leases", "workers.protocol"),
    },
    "swapd.metrics": {"swapd.domain", "swapd.supervisor"},
    "swapd.proxy": {
        *("swapd.domain", "swapd.system", "swapd.process", "swapd.leases", "swapd.supervisor"),
        *("swapd.metrics", "workers.protocol"),
    },
    "swapd.http": {
        *(
            "swapd.domain",
            "swapd.system",
            "swapd.config",
            "swapd.process",
            "swapd.leases",
            "swapd.supervisor",
        ),
        *("swapd.metrics", "swapd.proxy", "workers.connection_timeouts", "workers.protocol"),
    },
    "swapd.control_socket": {
        *("swapd.domain", "swapd.system", "swapd.process", "swapd.leases", "swapd.proxy"),
        *("swapd.http", "workers.protocol"),
    },
    "swapd.listeners": {
        *("swapd.domain", "swapd.system", "swapd.paths", "swapd.process", "swapd.http"),
        *("swapd.control_socket",),
    },
    "swapd.daemon": {
        *("swapd.domain", "swapd.system", "swapd.paths", "swapd.config", "swapd.library"),
        *("swapd.process", "swapd.supervisor", "swapd.metrics", "swapd.http", "swapd.listeners"),
        *("swapd.proxy", "swapd.leases", "swapd.gguf", "swapd.control_socket"),
    },
    "swapd.cli": {
        *("swapd.domain", "swapd.system", "swapd.paths", "swapd.gguf", "swapd.config"),
        *("swapd.library", "swapd.process", "swapd.simulation", "swapd.http.tls"),
    },
    "swapd.__main__": {"swapd.cli", "swapd.system"},
    "workers": set(),
    "bench": {"swapd", "workers"},
    "demo": set(),
    "tools": set(),
}
"""For each package, the packages of this project that it may import besides itself."""

PURE = {
    *("__future__", "bisect", "collections", "dataclasses", "enum", "heapq", "math"),
    *("types", "typing", "difflib", "re", "unicodedata"),
}
"""Modules of the standard library that the domain and the scheduler may import."""

STANDARD_LIBRARY_ONLY = "workers.protocol"

MODULES = structure.read(ROOT, ("swapd", "workers", "bench", "demo", "tools"))


@functools.cache
def _edges() -> dict[str, set[str]]:
    return structure.graph(MODULES)


def _layer(module: str) -> str | None:
    """Return the longest name in `LAYERS` that is the module or one of its packages."""
    inside = [name for name in LAYERS if module == name or module.startswith(f"{name}.")]
    return max(inside, key=len, default=None)


def breaches(module: str, imported: Iterable[str]) -> list[str]:
    """Return the imports of a module that `LAYERS` forbids."""
    layer = _layer(module)
    assert layer is not None, f"{module} is in no layer"
    found = []
    for name in imported:
        target = _layer(name)
        # `swapd` itself holds the version alone.
        if target is None or target == layer or name == "swapd":
            continue
        allowed = LAYERS[layer]
        if not {target, name, target.split(".")[0]} & allowed:
            found.append(f"{module} imports {name}")
    return found


def test_no_package_imports_what_its_layer_forbids() -> None:
    found = [b for module, targets in _edges().items() for b in breaches(module, targets)]
    assert found == []


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("swapd.scheduler.eviction", "swapd.system.aio"),
        ("swapd.domain.events", "swapd.scheduler.state"),
        ("swapd.gguf.file_stamp", "swapd.config.model_builder"),
        ("swapd.library.download", "swapd.cli.output"),
        ("swapd.daemon", "swapd.cli.main"),
        ("swapd.proxy.retry", "swapd.http.context"),
        ("swapd.supervisor", "swapd.http.app"),
        ("swapd.process.worker_process", "workers.serve"),
        ("workers.engine.engine", "swapd.domain.models"),
    ],
)
def test_a_breach_is_found(module: str, imported: str) -> None:
    assert breaches(module, [imported]) == [f"{module} imports {imported}"]


def test_no_import_cycle_is_left_between_files_or_packages() -> None:
    assert structure.cycles(_edges()) == []
    assert structure.cycles(structure.packages(_edges())) == []


def test_a_cycle_is_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert structure.cycles(edges) == [["b", "c"]]


def test_the_scheduler_and_the_domain_are_pure() -> None:
    for module in MODULES:
        if _layer(module.name) in ("swapd.domain", "swapd.scheduler"):
            outside = module.top_level_imports() - {"swapd"}
            assert outside <= PURE, f"{module.name}: {outside - PURE}"


def test_the_contract_between_supervisor_and_worker_needs_the_standard_library_alone() -> None:
    (contract,) = [module for module in MODULES if module.name == STANDARD_LIBRARY_ONLY]
    assert contract.top_level_imports() <= sys.stdlib_module_names | {"__future__"}


def test_only_one_module_imports_llama_cpp() -> None:
    importers = {m.name for m in MODULES if "llama_cpp" in m.top_level_imports()}
    assert importers == {"workers.llama.model"}


def test_the_scheduler_shares_no_state_by_inheritance() -> None:
    scheduler = [m for m in MODULES if _layer(m.name) == "swapd.scheduler"]
    assert structure.longest_inheritance(scheduler) == 1


def test_no_public_class_name_stands_for_two_things() -> None:
    product = [m for m in MODULES if m.name.split(".")[0] in structure.PRODUCT]
    assert structure.homonyms(product) == {}


def test_the_daemon_loads_neither_the_cli_nor_heavy_libraries() -> None:
    code = "import sys, swapd.daemon; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not {name for name in loaded if name.startswith("swapd.cli")}
    assert not loaded & {"swapd.library.discovery", "huggingface_hub"}
    assert not loaded & {"typer", "rich", "numpy", "gguf", "llama_cpp", "jinja2"}
    assert {name for name in loaded if name.startswith("workers")} <= {
        "workers",
        "workers.protocol",
        "workers.connection_timeouts",
    }
