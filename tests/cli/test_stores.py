"""All stores of a machine at once, by command: every model responds, no external file changes.

The stores hold the demo models under many names, and much else that real stores hold.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

import httpx
import msgspec
import pytest

from tests.cli.user import User
from tests.daemon import answer_text, chat
from tests.gguf.gguf_files import split_gguf
from tests.library.stores import ALICE, BARD, Machine, another, fill

NAMES = {
    "alice",
    "bard",
    "ls/big",
    "ls/cut-gguf:cut-q4_0",
    "ls/eye:7b",
    "ls/gemma3:27.4b-q4_k_m",
    "ls/gemma3:27.4b-q8_0",
    "ls/hf.co-mary-gemma3:27.4b-unknown",
    "ls/llava:3.1m-q8_0",
    "ls/mary-gemma3:27.4b-q8_0",
    "ls/mary-tiny:q8_0",
    "ls/my-folder:gr--e-und-ma-",
    "ls/poet:27.4b-q8_0",
    "ls/tiny-gguf:tiny-q4_0",
    "ls/tiny-gguf:tiny-q8_0",
    "ls/tiny:q4_k_m",
    "ls/tiny:q8_0",
}


@pytest.fixture
def machine(user: User) -> Machine:
    """The user's machine, with models in every store; `ollama rm` takes a manifest away."""
    root = user.home / "machine"
    root.mkdir()
    machine = Machine(root, BARD.read_bytes(), ALICE.read_bytes())
    machine.parts = tuple(part.read_bytes() for part in split_gguf(ALICE, root / "made/split"))
    fill(machine)
    os.mkfifo(machine.folder / "pipe.gguf")
    (machine.folder / "round").symlink_to(machine.folder)
    (machine.folder / "again.gguf").symlink_to(machine.folder / "again.gguf")
    machine.folder.joinpath("\x1b[2J\nnot text \udcff.gguf").write_bytes(machine.alice)
    shutil.rmtree(machine.home)
    user.environ |= {**machine.env, "MIN_MODEL_AGE_SECONDS": "0"}
    tools = root / "tools"
    tools.mkdir()
    manifests = machine.ollama.root / "manifests/registry.ollama.ai/library"
    (tools / "ollama").write_text(
        f'#!/bin/sh\n[ "$1" = rm ] && rm {manifests}/$(echo $2 | tr : /)\n'
    )
    (tools / "ollama").chmod(0o755)
    user.environ["PATH"] = f"{tools}:{user.environ['PATH']}"
    return machine


def _all(folder: Path) -> dict[str, str]:
    """Return every file, link and folder with its content, mode and time."""
    seen = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            what = str(path.readlink())
        elif path.is_file():
            what = f"{hashlib.sha256(path.read_bytes()).hexdigest()} {status.st_mtime_ns}"
        else:
            what = ""
        seen[str(path.relative_to(folder))] = f"{status.st_mode:o} {what}"
    return seen


def _listed(user: User) -> dict[str, str]:
    return {m["name"]: m["state"] for m in msgspec.json.decode(user.says("list", "--json"))}


def _without(seen: dict[str, str], *gone: str) -> dict[str, str]:
    """Return the state without these paths and all below them."""
    return {k: v for k, v in seen.items() if not any(k == g or k.startswith(f"{g}/") for g in gone)}


def test_every_listed_model_responds_and_no_external_file_changes(
    user: User, machine: Machine
) -> None:
    before = _all(machine.root)
    output = user.says("sync")
    links = machine.models / "ollama"
    after = _all(machine.root)
    assert _without(after, "models/ollama") == before
    assert {p.name for p in links.rglob("*.gguf")} == {
        line.rpartition("/")[2] for line in output.splitlines() if line.startswith("linked")
    }
    names = {name for name, state in _listed(user).items() if state == "unloaded"}
    assert names == NAMES
    broken = [line for line in user.says("list").splitlines() if line.startswith("✗")]
    assert sorted(re.sub(".*[/�](?=.)", "", line.split(".gguf")[0]) for line in broken) == [
        "again",
        "gone",
        "not text �",
        "pipe",
        "short",
    ]
    files = {path: path.stat().st_mtime_ns for path in (user.home / "swapd").rglob("*.*")}
    assert user.says("sync").splitlines()[-1] == f"config  {user.config} unchanged"
    assert {p: p.stat().st_mtime_ns for p in (user.home / "swapd").rglob("*.*")} == files

    user.says("start")
    with httpx.Client(base_url=f"http://127.0.0.1:{user.port}", timeout=60) as http:
        for name in sorted(NAMES):
            assert answer_text(http.post("/v1/chat/completions", json=chat(name))), name
    assert _all(machine.root) == after

    assert "removed ls/tiny:q4_k_m" in user.says("rm", "ls/tiny:q4_k_m", "--yes")
    user.says("rm", "gemma3:27b-q4", "--yes")
    user.says("rm", "ls/cut-gguf:cut-q4_0", "--yes")
    user.says("rm", "gemma3:27b", "--yes")  # Whose blob the poet uses too.
    gone = (
        "models/john/tiny/tiny-q4_k_m.gguf",
        "ollama/manifests/registry.ollama.ai/library/gemma3/27b-q4",
        "ollama/manifests/registry.ollama.ai/library/gemma3/27b",
        "models/ollama/gemma3/gemma3-27.4B-Q4_K_M.gguf",
        "hub/models--o--Cut-GGUF",
    )
    assert _all(machine.root) == _without(after, *gone)
    names = {name for name, state in _listed(user).items() if state != "broken"}
    assert names == NAMES - {"ls/tiny:q4_k_m", "ls/gemma3:27.4b-q4_k_m", "ls/cut-gguf:cut-q4_0"}
    with httpx.Client(base_url=f"http://127.0.0.1:{user.port}", timeout=60) as http:
        assert answer_text(http.post("/v1/chat/completions", json=chat("ls/gemma3:27.4b-q8_0")))
    blob = machine.ollama.path(another(machine.bard, 2))
    assert blob.is_file()  # Ollama's own business.
