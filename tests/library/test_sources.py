"""Every store at once: exactly its models are listed, and no external file changes."""

# A way is easiest to check in one piece.
# ruff: noqa: E501

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swapd.library.sources import ollama
from swapd.library.sources.base import ScanResult
from swapd.library.sources.ollama import DamagedManifestError, parse_manifest
from tests.gguf.gguf_files import write_gguf
from tests.library.stores import ALICE, BARD, LAYER, LORA, Machine, another, fill


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def blob(machine: Machine, number: int) -> str:
    return f"ollama/blobs/{machine.ollama.path(another(machine.bard, number)).name}"


def test_the_listing_is_exactly_right(tmp_path: Path) -> None:
    machine = Machine(tmp_path, BARD.read_bytes(), ALICE.read_bytes())
    fill(machine)
    report = machine.sync()
    assert machine.served() == {
        "bard": "demo/bard.gguf",
        "ls/gemma3:27.4b-q8_0": blob(machine, 1),
        "ls/gemma3:27.4b-q4_k_m": blob(machine, 2),
        "ls/mary-gemma3:27.4b-q8_0": blob(machine, 3),
        "ls/hf.co-mary-gemma3:27.4b-unknown": blob(machine, 4),
        "ls/llava:3.1m-q8_0": blob(machine, 5),
        "ls/poet:27.4b-q8_0": blob(machine, 1),
        "ls/tiny:q8_0": "models/john/tiny/tiny-q8_0.gguf",
        "ls/mary-tiny:q8_0": "models/mary/tiny/tiny-q8_0.gguf",
        "ls/tiny:q4_k_m": "models/john/tiny/tiny-q4_k_m.gguf",
        "ls/big": "models/john/big/big-00001-of-00002.gguf",
        "ls/eye:7b": "models/john/eye/eye-7b.gguf",
        "ls/tiny-gguf:tiny-q8_0": "hub/models--o--Tiny-GGUF/snapshots/c2/tiny-Q8_0.gguf",
        "ls/tiny-gguf:tiny-q4_0": "hub/models--o--Tiny-GGUF/snapshots/c1/tiny-Q4_0.gguf",
        "ls/cut-gguf:cut-q4_0": "hub/models--o--Cut-GGUF/snapshots/c0/q/cut-q4_0-00001-of-00002.gguf",
        "ls/my-folder:gr--e-und-ma-": "my folder/Größe und Maß.gguf",
    }
    size = ALICE.stat().st_size
    assert {str(p.path.relative_to(machine.root)): p.reason for p in report.broken} == {
        "my folder/short.gguf": f"is cut short: {size - 1} of {size} bytes are there",
        "models/john/gone.gguf": "is a link to /not/mounted/gone.gguf, which is missing",
    }
    newer = machine.hub.root / "models--o--Tiny-GGUF/snapshots/c2/tiny-Q8_0.gguf"
    assert {str(p.path.relative_to(machine.root)): p.reason for p in report.skipped} == {
        "models/john/eye/mmproj-eye-f32.gguf": "is a projector, part of eye-7b.gguf",
        "hub/models--o--Tiny-GGUF/snapshots/c1/tiny-Q8_0.gguf": f"is another revision of {newer}",
    }
    assert report.warnings == ()
    assert {str(path.relative_to(machine.models / "ollama")) for path in report.linked} == {
        "gemma3/gemma3-27.4B-Q8_0.gguf",
        "gemma3/gemma3-27.4B-Q4_K_M.gguf",
        "mary-gemma3/mary-gemma3-27.4B-Q8_0.gguf",
        "hf.co-mary-gemma3/hf.co-mary-gemma3-27.4B-unknown.gguf",
        "llava/llava-3.1M-Q8_0.gguf",
    }


def test_a_model_answers_to_every_name_that_is_its_alone(machine: Machine) -> None:
    fill(machine)
    machine.sync()
    models = machine.load().catalog.models
    assert models["ls/gemma3:27.4b-q8_0"].presentation.aliases == (
        "gemma3:27.4b-q8_0", "gemma3:27b", "gemma3:latest",
    )  # fmt: skip
    assert models["ls/mary-gemma3:27.4b-q8_0"].presentation.aliases[1:] == ("mary/gemma3:27b",)
    assert models["ls/hf.co-mary-gemma3:27.4b-unknown"].presentation.aliases[1:] == (
        "hf.co/mary/gemma3:q8_0",
    )
    assert models["ls/tiny-gguf:tiny-q4_0"].presentation.aliases[1:] == ("o/tiny-gguf:q4_0",)
    assert models["ls/cut-gguf:cut-q4_0"].presentation.aliases[1:] == ("o/cut-gguf:q4_0",)
    assert models["ls/mary-tiny:q8_0"].presentation.aliases == ("mary-tiny:q8_0", "sub:copy")


def test_an_alias_of_two_models_belongs_to_neither(machine: Machine) -> None:
    for i, name in enumerate("ab"):
        path = machine.put(f"models/{name}/{name}-7b.gguf", another(machine.alice, i))
        (machine.folder / name / "copies").mkdir(parents=True)
        (machine.folder / name / "copies/copy.gguf").symlink_to(path)
    machine.sync()
    models = machine.load().catalog.models
    assert {name: spec.presentation.aliases for name, spec in models.items()} == {
        "ls/a:7b": ("a:7b",), "ls/b:7b": ("b:7b",),
    }  # fmt: skip


def test_projectors_and_adapters_go_with_their_model(machine: Machine) -> None:
    fill(machine)
    machine.sync()
    models = machine.load().catalog.models
    eye = machine.models / "john/eye/mmproj-eye-f32.gguf"
    assert models["ls/eye:7b"].presentation.metadata == {"mmproj": str(eye)}
    assert str(models["ls/llava:3.1m-q8_0"].presentation.metadata["mmproj"]).startswith(
        str(machine.ollama.root / "blobs")
    )
    poet = models["ls/poet:27.4b-q8_0"]
    lora = machine.ollama.path(LORA.read_bytes())
    assert poet.launch.argv[poet.launch.argv.index("--lora") + 1] == str(lora)
    assert poet.presentation.metadata == {}
    assert "--lora" not in models["ls/gemma3:27.4b-q8_0"].launch.argv


def test_a_projector_belongs_to_the_model_in_its_name(machine: Machine) -> None:
    projector = write_gguf(machine.root / "made/p.gguf", arch="clip", tokenizer=False).read_bytes()
    for i, name in enumerate(("gemma-q8_0", "gemma-q4_0", "llama-7b")):
        machine.put(f"my folder/{name}.gguf", another(machine.alice, i))
    for i, name in enumerate(("mmproj-gemma-f16", "gemma-mmproj-BF16")):
        machine.put(f"my folder/{name}.gguf", another(projector, i))
    machine.put("models/o/q/q-7b.gguf", another(machine.alice, 8))
    machine.put("models/o/q/mmproj-model-f16.gguf", another(projector, 9))
    machine.ollama.add("registry.ollama.ai/library/eye/latest", projector)
    machine.ollama.add("registry.ollama.ai/library/blind/latest", machine.bard)
    report = machine.sync()
    folder = machine.folder
    assert {
        name: spec.presentation.metadata for name, spec in machine.load().catalog.models.items()
    } == {
        "ls/my-folder:gemma-q8_0": {"mmproj": str(folder / "gemma-mmproj-BF16.gguf")},
        "ls/my-folder:gemma-q4_0": {"mmproj": str(folder / "gemma-mmproj-BF16.gguf")},
        "ls/my-folder:llama-7b": {},
        "ls/q:7b": {"mmproj": str(machine.models / "o/q/mmproj-model-f16.gguf")},
        "ls/blind:3.1m-q8_0": {},
    }
    assert {
        p.path.name: p.reason.removeprefix("is a projector, part of ") for p in report.skipped
    } == {
        "mmproj-gemma-f16.gguf": "gemma-q4_0.gguf, gemma-q8_0.gguf",
        "gemma-mmproj-BF16.gguf": "gemma-q4_0.gguf, gemma-q8_0.gguf",
        "mmproj-model-f16.gguf": "q-7b.gguf",
        machine.ollama.path(projector).name: "another model",
    }


def test_the_best_of_several_projectors_is_taken(machine: Machine) -> None:
    machine.put("models/o/q/q-7b.gguf", machine.alice)
    for name, kind in (("a-mmproj", 0), ("b-mmproj", 32), ("c-mmproj", 1)):
        path = machine.models / f"o/q/{name}.gguf"
        write_gguf(path, arch="clip", tokenizer=False, file_type=kind)
    machine.sync()
    [spec] = machine.load().catalog.models.values()
    assert spec.presentation.metadata == {"mmproj": str(machine.models / "o/q/c-mmproj.gguf")}


def test_ollamas_name_wins_over_others_of_the_same_file(machine: Machine) -> None:
    for name in ("hf.co/a/b/q8_0", "registry.ollama.ai/a/c/1", "registry.ollama.ai/library/z/v1",
                 "registry.ollama.ai/library/z/latest"):  # fmt: skip
        machine.ollama.add(name, machine.bard)
    machine.sync()
    [spec] = machine.load().catalog.models.values()
    assert spec.name == "ls/z:3.1m-q8_0"
    assert set(spec.presentation.aliases) == {
        "z:3.1m-q8_0", "z:latest", "z:v1", "a/c:1", "a-c:3.1m-q8_0", "hf.co/a/b:q8_0",
        "hf.co-a-b:3.1m-q8_0",
    }  # fmt: skip


def test_a_file_that_a_new_revision_left_alone_is_one(machine: Machine) -> None:
    machine.hub.add("o/r", "c1", "r-Q8_0.gguf", machine.alice)
    path = machine.hub.add("o/r", "c2", "r-Q8_0.gguf", machine.alice)
    report = machine.sync()
    assert (report.skipped, report.broken) == ((), ())
    assert machine.served() == {"ls/r:q8_0": str(path.relative_to(machine.root))}


def test_a_second_sync_changes_nothing_and_no_external_file(machine: Machine) -> None:
    fill(machine)
    before = machine.foreign()
    first = machine.sync()
    command = {str(path) for path in first.linked}
    after = {
        k: v for k, v in machine.foreign().items() if k not in command and "models/ollama" not in k
    }
    assert after == before
    both = machine.foreign(), (machine.home / "config.yaml").stat().st_mtime_ns
    second = machine.sync()
    assert (second.written, second.linked, second.unlinked) == (False, (), ())
    assert (second.added, second.changed, second.removed) == ((), (), ())
    assert (machine.foreign(), (machine.home / "config.yaml").stat().st_mtime_ns) == both


@pytest.mark.parametrize(
    ("gone", "name"),
    [
        ("models/john/tiny/tiny-q8_0.gguf", "ls/tiny:q8_0"),
        ("ollama/manifests/registry.ollama.ai/mary/gemma3/27b", "ls/mary-gemma3:27.4b-q8_0"),
        ("ollama/manifests/registry.ollama.ai/library/poet/latest", "ls/poet:27.4b-q8_0"),
        ("hub/models--o--Cut-GGUF/snapshots/c0/q/cut-q4_0-00001-of-00002.gguf", "ls/cut-gguf:cut-q4_0"),
        ("my folder/Größe und Maß.gguf", "ls/my-folder:gr--e-und-ma-"),
    ],
)  # fmt: skip
def test_removing_one_removes_just_that(machine: Machine, gone: str, name: str) -> None:
    fill(machine)
    machine.sync()
    before = machine.served()
    (machine.root / gone).unlink()
    report = machine.sync()
    assert (report.added, report.changed, report.removed) == ((), (), (name,))
    assert machine.served() == {k: v for k, v in before.items() if k != name}


def test_a_renamed_file_gets_its_new_name(machine: Machine) -> None:
    fill(machine)
    machine.sync()
    (machine.models / "mary/tiny/tiny-q8_0.gguf").unlink()
    report = machine.sync()
    assert (report.added, report.removed) == (("ls/sub:copy",), ("ls/mary-tiny:q8_0",))
    (machine.ollama.root / "manifests/registry.ollama.ai/library/gemma3/27b").unlink()
    report = machine.sync()
    assert (report.added, report.removed) == ((), ())
    assert (
        "gemma3:27b"
        not in machine.load().catalog.models["ls/gemma3:27.4b-q8_0"].presentation.aliases
    )


def test_two_of_one_size_are_distinguished_by_their_tags_and_keep_their_names(
    machine: Machine,
) -> None:
    bard, library = machine.bard, "registry.ollama.ai/library"
    machine.ollama.add(f"{library}/llama3/8b-text", another(bard, 1), "8.0B")
    machine.sync()
    assert machine.served() == {"ls/llama3:8.0b-q8_0": blob(machine, 1)}
    machine.ollama.add(f"{library}/llama3/8b", another(bard, 2), "8.0B")
    machine.sync()
    assert machine.served() == {
        "ls/llama3:8.0b-q8_0": blob(machine, 1), "ls/llama3:8b": blob(machine, 2),
    }  # fmt: skip
    links = sorted((machine.models / "ollama/llama3").iterdir())
    assert [link.name for link in links] == ["llama3-8.0B-Q8_0.gguf", "llama3-8b.gguf"]


def test_a_name_remembered_wrongly_is_not_taken(machine: Machine) -> None:
    machine.put("models/m/m-7b.gguf", machine.alice)
    stored = machine.home / ".swapd/names.json"
    stored.parent.mkdir()
    wrong = json.dumps({str(machine.models / "m/m-7b.gguf"): "bard"}).encode()
    for data in (wrong, b"[1]", b"{", b"\xff", b"[" * 100_000):
        stored.write_bytes(data)
        machine.sync()
        assert list(machine.served()) == ["ls/m:7b"]


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ("{", "is no manifest of Ollama: not the expected JSON"),
        ('{"layers": 3}', "is no manifest of Ollama: not the expected JSON"),
        (
            '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../x"}]}',
            "has a layer whose digest is no SHA-256: 'sha256:../../x'",
        ),
        (
            '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:ab"}]}',
            "names sha256-ab, which is missing",
        ),
        (" " * 2**22 + "{}", "is too long for a manifest"),
        (
            json.dumps({"layers": [{"mediaType": LAYER + "model", "digest": f"sha256:a{i}"} for i in (1, 2)]}),
            "has 2 model layers, where one can be used",
        ),
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_reported_and_stops_nothing(
    machine: Machine, manifest: str, reason: str
) -> None:
    library = machine.ollama.root / "manifests/registry.ollama.ai/library"
    machine.ollama.add("registry.ollama.ai/library/good/latest", machine.bard)
    (library / "bad").mkdir()
    (library / "bad/latest").write_text(manifest)
    report = machine.sync()
    assert [(p.path, p.reason) for p in report.broken] == [(library / "bad/latest", reason)]
    assert list(machine.served()) == ["ls/good:3.1m-q8_0"]


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ({}, "holds no model; the model it names runs elsewhere"),
        ({"layers": [{"mediaType": "application/vnd.ollama.image.tensor; name=a"}]},
         "holds single tensors and no GGUF file"),
    ],
)  # fmt: skip
def test_manifests_without_a_gguf_model_are_skipped(
    machine: Machine, manifest: dict[str, object], reason: str
) -> None:
    path = machine.ollama.root / "manifests/registry.ollama.ai/library/far/cloud"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(manifest))
    report = machine.sync()
    assert [(p.path, p.reason) for p in report.skipped] == [(path, reason)]


def test_a_description_that_cannot_be_read_only_costs_the_name(machine: Machine) -> None:
    machine.ollama.add("localhost:5000/n/m/t", machine.bard)
    for path in (machine.ollama.root / "blobs").iterdir():
        if path.stat().st_size < 200:
            path.write_text("[]")
    machine.sync()
    assert list(machine.served()) == ["ls/localhost-5000-n-m:unknown-unknown"]


@given(st.binary(max_size=80) | st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["sha256:ab", "layers"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["layers", "config", "mediaType", "digest"]), inner, max_size=3),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
@settings(deadline=None)
@example(b"[" * 100_000)
def test_any_bytes_are_a_manifest_or_a_damaged_one(data: bytes) -> None:
    try:
        assert parse_manifest(data) is not None
    except DamagedManifestError as error:
        assert str(error)


def test_a_store_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert ollama.scan(tmp_path / "none") == ScanResult()
