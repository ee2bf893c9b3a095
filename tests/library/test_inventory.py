"""Data of `list` and `show`."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swapd.gguf.model_info import ModelInfo, ModelInfoCache
from swapd.gguf.reader import DamagedModelError
from swapd.library.inventory import InventoryEntry, list_inventory
from swapd.library.sync import names_in
from tests.config.reading import RAM
from tests.gguf.gguf_files import write_gguf
from tests.library.stores import BARD, DEMO, Machine, fill


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def listed(machine: Machine, demo: Path | None = None) -> dict[str, InventoryEntry]:
    found = list_inventory(
        machine.home, machine.env, demo or machine.demo, now=4e9, total_memory=RAM
    )
    return {entry.name: entry for entry in found}


def test_the_demo_models_are_listed_in_full(machine: Machine) -> None:
    entry = listed(machine, DEMO)["bard"]
    assert (entry.source, entry.path, entry.size) == ("demo", BARD, BARD.stat().st_size)
    assert (entry.architecture, entry.quantisation, entry.context) == ("llama", "Q8_0", 1024)
    parameters = sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(BARD).tensors)
    assert (entry.parameters, entry.vocabulary, entry.title) == (parameters, 3072, "swapd bard")
    assert (entry.template, entry.pooling, entry.broken) == (True, "", "")
    flags = "--ctx-size 1024 --parallel 1 --slot-save-path .swapd/kv"
    assert entry.command == f"${{worker}} --model {BARD} {flags}"
    assert 42 * 2**20 < entry.need < 60 * 2**20


def test_the_list_has_the_models_of_a_sync_and_broken_files(machine: Machine) -> None:
    fill(machine)
    before = machine.foreign()
    entries = listed(machine)
    assert machine.foreign() == before
    assert sorted(path.name for path in (machine.home).rglob("*")) == [".swapd", "model-info.json"]
    machine.sync()
    models = machine.load().catalog.models
    assert {name for name, entry in entries.items() if not entry.broken} == set(models)
    for name, spec in models.items():
        entry = entries[name]
        assert (entry.aliases, entry.context) == (spec.presentation.aliases, spec.launch.context)
        assert str(entry.path) == spec.launch.argv[spec.launch.argv.index("--model") + 1]
        assert entry.need == spec.serving.need_bytes
    assert entries["ls/big"].size == sum(
        path.stat().st_size for path in (machine.models / "john/big").iterdir()
    )
    assert entries["ls/big"].parameters == (32 + 2) * 32
    short = entries["ls/my-folder:short"]
    assert (short.source, short.path) == ("folder", machine.folder / "short.gguf")
    assert short.broken.startswith("is cut short: ")
    assert entries["ls/john:gone"].broken == "is a link to /not/mounted/gone.gguf, which is missing"
    sources = {entry.source for entry in entries.values()}
    assert sources == {"demo", "ollama", "lm studio", "hugging face", "folder"}
    assert entries["ls/gemma3:27.4b-q8_0"].known_as == ("gemma3:latest", "gemma3:27b")
    assert entries["ls/hf.co-mary-gemma3:27.4b-unknown"].known_as == ("hf.co/mary/gemma3:Q8_0",)
    assert entries["ls/tiny-gguf:tiny-q4_0"].known_as == ("o/Tiny-GGUF:Q4_0",)
    assert entries["ls/mary-tiny:q8_0"].elsewhere == (machine.folder / "sub/copy.gguf",)


def test_a_custom_server_and_another_use_of_a_file_are_listed(machine: Machine) -> None:
    machine.put("models/m/m-7b.gguf", machine.alice)
    (machine.home / "custom_models.yaml").write_text(
        "models:\n  far: {cmd: [far, '${PORT}']}\n  hot: {base_model: 'm:7b', ctx_size: 512}\n"
    )
    entries = listed(machine)
    far, hot = entries["ls/far"], entries["ls/hot"]
    assert (far.source, far.command, far.path) == ("custom_models.yaml", "far ${PORT}", None)
    assert (hot.base, hot.path, hot.context) == ("m:7b", entries["ls/m:7b"].path, 512)


def test_the_names_in_a_configuration_are_those_that_load(machine: Machine) -> None:
    custom = "models:\n"
    assert names_in(machine.home / "config.yaml") == frozenset()
    for name in ("plain", "'quoted: name'", "'7'", "ümlaut", "a" * 200, "'it''s # odd'"):
        custom += f"  {name}:\n    cmd: |\n      # of several lines\n      x --port ${{PORT}}\n"
        (machine.home / "custom_models.yaml").write_text(custom)
        machine.sync()
        assert names_in(machine.home / "config.yaml") == set(machine.load().catalog.models), name


def test_heads_are_read_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tokens=5)
    stored = tmp_path / ".swapd/model-info.json"
    infos = ModelInfoCache(stored)
    info = infos.model_info(path, path.stat())
    assert (infos.save(), infos.save()) == (True, False)
    path.chmod(0)
    status = path.stat()
    data = path.read_bytes() if os.geteuid() == 0 else b""
    again = ModelInfoCache(stored)
    if data:
        # Root reads everything, so only other bytes show that the file was not read.
        path.write_bytes(b"X" * len(data))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert again.model_info(path, path.stat()) == info
    assert not again.save()
    path.chmod(0o600)
    path.write_bytes(b"no model".ljust(status.st_size))
    os.utime(path, ns=(0, status.st_mtime_ns + 1))
    for _ in range(2):
        fresh = ModelInfoCache(stored)
        with pytest.raises(DamagedModelError, match=r"^is not a GGUF file$"):
            fresh.model_info(path, path.stat())
        fresh.save()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"version": 0, "files": {}}', b"\xff" * 99,
                                  b'{"version": 1, "files": {"m": {"size": "x"}}}'])  # fmt: skip
def test_a_damaged_cache_is_ignored_and_written_anew(tmp_path: Path, data: bytes) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    stored = tmp_path / "model-info.json"
    stored.write_bytes(data)
    infos = ModelInfoCache(stored)
    assert infos.model_info(path, path.stat()).architecture == "llama"
    assert infos.save()
    assert stored.read_bytes() != data


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 600), st.binary(max_size=8))
def test_any_content_of_the_cache_yields_a_card(position: int, piece: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_gguf(Path(folder, "m.gguf"), tokens=3, rows=1)
        stored = Path(folder, "model-info.json")
        infos = ModelInfoCache(stored)
        infos.model_info(path, path.stat())
        infos.save()
        data = stored.read_bytes()
        stored.write_bytes(data[:position] + piece + data[position + len(piece) :])
        assert isinstance(ModelInfoCache(stored).model_info(path, path.stat()), ModelInfo)


def test_a_cache_of_another_version_is_not_used(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    stored = tmp_path / "model-info.json"
    infos = ModelInfoCache(stored)
    infos.model_info(path, path.stat())
    infos.save()
    other = json.loads(stored.read_text().replace("llama", "other"))
    stored.write_text(json.dumps({**other, "version": other["version"] - 1}))
    assert ModelInfoCache(stored).model_info(path, path.stat()).architecture == "llama"


def test_five_hundred_models_are_listed_in_0_2_seconds(machine: Machine) -> None:
    for i in range(500):
        machine.put(f"models/p{i % 7}/m{i // 4}/m{i // 4}-q{i % 4}.gguf", machine.alice)
    assert len(listed(machine)) == 500
    took = []
    gc.freeze()  # The objects of all tests before are no cost of a command.
    for _ in range(9):  # The least of several: other processes slow down some.
        start = time.process_time()
        listed(machine)
        took.append(time.process_time() - start)
    gc.unfreeze()
    assert min(took) < 0.2
    code = "import sys, swapd.library.inventory; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "gguf", "typer", "rich"} & set(done.stdout.split())
