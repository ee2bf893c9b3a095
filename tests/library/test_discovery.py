"""Discovery of models in real folders, and the reasons given for other files."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import pytest

from swapd.config.env import ModelStores
from swapd.gguf.memory_estimate import MemoryFactors, default_context, memory_factors
from swapd.gguf.reader import DamagedModelError, read_header
from swapd.library.discovery import Discovery, discover
from swapd.library.naming import bare_name
from tests.gguf.gguf_files import write_gguf

GIB = 2**30


def look(tmp_path: Path, *, now: float = 4e9, min_age: float = 5) -> Discovery:
    stores = ModelStores((), tmp_path / "models", (tmp_path / "models",), (), ())
    return discover(stores, tmp_path / "demo", now=now, min_age=min_age)


def names(found: Discovery) -> list[str]:
    return [model.bare for model in found.found]


def reasons(tmp_path: Path, passed: Discovery) -> dict[str, str]:
    return {str(p.path.relative_to(tmp_path)): p.reason for p in (*passed.broken, *passed.skipped)}


@pytest.mark.parametrize(
    ("folder", "stem", "name"),
    [
        ("gemma3", "gemma3-27.4b-Q8_0", "gemma3:27.4b-q8_0"),
        ("Gemma 3", "gemma 3 Q8", "gemma-3:q8"),
        ("Qwen2.5-GGUF", "Qwen2.5-Q4_K_M", "qwen2.5-gguf:qwen2.5-q4_k_m"),
        ("gemma", "gemma", "gemma"),
        ("gemma", "gemma3-1b", "gemma:3-1b"),
        ("Großes Modell", "Ünï©ode", "gro-es-modell:-n--ode"),
        ("m", "U\u0308n", "m:-n"),
    ],
)
def test_names_follow_the_references_rule(folder: str, stem: str, name: str) -> None:
    assert bare_name(folder, stem) == name


def test_demo_models_are_named_by_their_stem_and_adapters_are_none(tmp_path: Path) -> None:
    write_gguf(tmp_path / "demo/bard.gguf")
    write_gguf(tmp_path / "demo/alice.gguf")
    write_gguf(tmp_path / "demo/alice-lora.gguf", kind="adapter")
    (tmp_path / "demo/alice.words.txt").write_text("words")
    found = look(tmp_path, now=(tmp_path / "demo/bard.gguf").stat().st_mtime)
    assert [(model.bare, model.demo) for model in found.found] == [("alice", True), ("bard", True)]
    assert reasons(tmp_path, found) == {"demo/alice-lora.gguf": "is an adapter for another model"}


def test_other_gguf_files_are_skipped_with_the_reason(tmp_path: Path) -> None:
    models = tmp_path / "models/m"
    write_gguf(models / "m-7b.gguf")
    write_gguf(models / "mmproj-m.gguf", tokenizer=False)
    write_gguf(models / "vision.gguf", arch="clip", tokenizer=False)
    write_gguf(models / "imatrix.gguf", kind="imatrix")
    write_gguf(models / "flux.gguf", arch="flux", tokenizer=False)
    write_gguf(models / "vocab.gguf", rows=0)
    write_gguf(models / ".hidden/x.gguf")
    (models / "readme.md").write_text("no model")
    found = look(tmp_path)
    assert names(found) == ["m:7b"]
    assert found.broken == ()
    assert reasons(tmp_path, found) == {
        "models/m/mmproj-m.gguf": "is a projector, part of m-7b.gguf",
        "models/m/vision.gguf": "is a projector, part of another model",
        "models/m/imatrix.gguf": "holds no model but a GGUF of type imatrix",
        "models/m/flux.gguf": "is not a language model: it has no tokenizer",
        "models/m/vocab.gguf": "holds a vocabulary and no weights",
    }


def test_unusable_files_do_not_stop_the_rest(tmp_path: Path) -> None:
    models = tmp_path / "models/m"
    whole = write_gguf(models / "m-good.gguf")
    data = whole.read_bytes()
    (models / "short.gguf").write_bytes(data[:-1])
    (models / "head.gguf").write_bytes(data[:100])
    (models / "empty.gguf").write_bytes(b"")
    (models / "text.gguf").write_bytes(b"<html>not found</html>")
    (models / "old.gguf").write_bytes(b"GGUF\1\0\0\0" + data[8:])
    (models / "gone.gguf").symlink_to("/nowhere/x.gguf")
    (models / "a ${b}.gguf").write_bytes(data)
    (models / "a\nb.gguf").write_bytes(data)
    os.mkfifo(models / "pipe.gguf")
    (models / "round.gguf").symlink_to("round.gguf")
    found = look(tmp_path)
    assert names(found) == ["m:good"]
    size = len(data)
    assert reasons(tmp_path, found) == {
        "models/m/short.gguf": f"is cut short: {size - 1} of {size} bytes are there",
        "models/m/head.gguf": "is cut short: its header continues after 100 bytes",
        "models/m/empty.gguf": "is cut short: its header continues after 0 bytes",
        "models/m/text.gguf": "is not a GGUF file",
        "models/m/old.gguf": "has GGUF version 1; 2 and 3 can be read",
        "models/m/gone.gguf": "is a link to /nowhere/x.gguf, which is missing",
        "models/m/a ${b}.gguf": "has a path that a command line in config.yaml cannot hold",
        "models/m/a\nb.gguf": "has a path that a command line in config.yaml cannot hold",
        "models/m/pipe.gguf": "is not a file",
        "models/m/round.gguf": "cannot be read: Too many levels of symbolic links",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files_and_folders_are_reported(tmp_path: Path) -> None:
    write_gguf(tmp_path / "models/a/x.gguf").chmod(0)
    write_gguf(tmp_path / "models/b/x.gguf").parent.chmod(0)
    found = look(tmp_path)
    (tmp_path / "models/b").chmod(0o700)
    assert reasons(tmp_path, found) == {
        "models/a/x.gguf": "cannot be read: Permission denied",
        "models/b": "cannot be read: Permission denied",
    }


def test_a_head_of_noise_is_damaged_and_nothing_worse(tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "good.gguf").read_bytes()
    noisy = tmp_path / "noisy.gguf"
    for position in range(4, 700, 3):
        noisy.write_bytes(data[:position] + b"\xff" * 7 + data[position + 7 :])
        try:
            memory_factors(read_header(noisy), 1)
        except DamagedModelError as error:
            assert str(error)


def test_a_young_file_waits(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "models/m/x.gguf")
    changed = path.stat().st_mtime
    young = look(tmp_path, now=changed + 3)
    assert (names(young), young.settles_in) == ([], 2)
    assert look(tmp_path, now=changed + 5).settles_in == 0
    assert reasons(tmp_path, young) == {
        "models/m/x.gguf": "changed 3 s ago and may still be being copied"
    }
    assert names(look(tmp_path, now=changed + 5)) == ["m:x"]
    assert names(look(tmp_path, now=changed - 100)) == ["m:x"]


def test_a_split_model_is_one_by_its_first_part(tmp_path: Path) -> None:
    models = tmp_path / "models/big"
    first = write_gguf(models / "big-q8-00001-of-00002.gguf", rows=1)
    second = write_gguf(models / "big-q8-00002-of-00002.gguf", tokenizer=False, rows=2)
    write_gguf(models / "half-00001-of-00002.gguf")
    write_gguf(models / "tail-00002-of-00002.gguf")
    found = look(tmp_path)
    [model] = found.found
    assert (model.bare, model.path) == ("big:q8", first)
    assert model.factors.size == first.stat().st_size + second.stat().st_size
    assert reasons(tmp_path, found) == {
        "models/big/half-00001-of-00002.gguf": "is incomplete: half-00002-of-00002.gguf is missing",
        "models/big/tail-00002-of-00002.gguf": (
            "belongs to tail-00001-of-00002.gguf, which is missing"
        ),
    }


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    blob = write_gguf(tmp_path / "blobs/sha256-1")
    (tmp_path / "models/ollama/gemma").mkdir(parents=True)
    (tmp_path / "models/ollama/gemma/gemma-1b.gguf").symlink_to(blob)
    write_gguf(tmp_path / "elsewhere/there/x.gguf")
    (tmp_path / "models/a-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "models/loop").symlink_to(tmp_path / "models")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "models")
    write_gguf(tmp_path / "models/real/y.gguf")
    (tmp_path / "models/alias").symlink_to(tmp_path / "models/real")
    found = look(tmp_path)
    assert names(found) == ["gemma:1b", "real:y", "there:x"]
    assert found.broken == found.skipped == ()


def test_a_file_and_a_link_to_it_are_one_model(tmp_path: Path) -> None:
    real = write_gguf(tmp_path / "models/z/z.gguf")
    (tmp_path / "models/a").mkdir()
    (tmp_path / "models/a/a.gguf").symlink_to(real)
    found = look(tmp_path)
    [model] = found.found
    assert (model.bare, model.path, model.aliases) == ("z", real, ("a",))
    assert reasons(tmp_path, found) == {}


def test_colliding_names_are_distinguished_deterministically(tmp_path: Path) -> None:
    for path in ("m/m-q4.gguf", "one/m/m-q4.gguf", "two/m/m-q4.gguf", "deep/two/m/m-q4.gguf"):
        write_gguf(tmp_path / "models" / path)
    write_gguf(tmp_path / "demo/m.gguf")
    write_gguf(tmp_path / "models/m/m.gguf")
    found = {m.bare: str(m.path.relative_to(tmp_path)) for m in look(tmp_path).found}
    assert found == {
        "m": "demo/m.gguf",
        "models-m": "models/m/m.gguf",
        "m:q4": "models/m/m-q4.gguf",
        "one-m:q4": "models/one/m/m-q4.gguf",
        "two-m:q4": "models/two/m/m-q4.gguf",
        "m:q4-880e35": "models/deep/two/m/m-q4.gguf",
    }


def test_huge_files_are_found_by_their_size_alone(tmp_path: Path) -> None:
    for gib in (31, 51):
        path = write_gguf(tmp_path / f"models/m/m-{gib}.gguf", context=131072)
        os.truncate(path, gib * GIB)
    found = {m.bare: default_context(m.factors, 8192) for m in look(tmp_path).found}
    assert found == {"m:31": 4096, "m:51": 2048}


def test_no_folder_holds_nothing(tmp_path: Path) -> None:
    assert look(tmp_path) == Discovery((), (), ())


def test_the_header_agrees_with_ggufs_reader(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", kv_heads=[1, 2], tokens=5000)
    head, reader = read_header(path), gguf.GGUFReader(path)
    for key in ("general.type", "llama.block_count", "llama.context_length"):
        assert head.fields[key] == reader.fields[key].contents()
    assert list(head.fields["llama.attention.head_count_kv"]) == [1, 2]  # type: ignore[arg-type]
    assert head.tensors == len(reader.tensors)
    assert memory_factors(head, 1).vocabulary == 5000


@pytest.mark.parametrize(
    ("size", "trained", "context"),
    [
        (GIB, 0, 8192), (30 * GIB, 0, 8192), (30 * GIB + 1, 0, 4096), (50 * GIB, 0, 4096),
        (50 * GIB + 1, 0, 2048), (GIB, 1024, 1024), (51 * GIB, 131072, 2048),
    ],
)  # fmt: skip
def test_the_context_follows_the_references_rule(size: int, trained: int, context: int) -> None:
    assert default_context(MemoryFactors(size, trained), 8192) == context
