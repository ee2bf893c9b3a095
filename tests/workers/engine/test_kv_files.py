"""The folder of saved sequences: checks, removal of damaged files, size limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.kv_store import DamagedError, KvFiles, fingerprint, identity_of

TOKENS = [*range(100)]


def written(files: KvFiles, tokens: list[int], data: bytes) -> Path:
    """Write a sequence and return its path."""

    def save(path: Path) -> int:
        return path.write_bytes(data)

    place = files.place(tokens, (("alice", 0.5),))
    files.write(place, tokens, (("alice", 0.5),), save)
    return place


def test_a_written_sequence_is_read_back(tmp_path: Path) -> None:
    files = KvFiles(tmp_path, "me", 1000)
    written(files, TOKENS, b"keys and values")
    (saved,) = KvFiles(tmp_path, "me", 1000).index()
    assert (saved.tokens, saved.adapters, saved.size) == (TOKENS, (("alice", 0.5),), 15)
    files.check(saved)
    assert KvFiles(tmp_path, "another", 1000).index() == []


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b"keys and valueS"), "checksum"),
        (lambda path: path.write_bytes(b"keys and"), "8 bytes and not 15"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_changed_bytes_are_found(tmp_path: Path, damage: object, reason: str) -> None:
    files = KvFiles(tmp_path, "me", 1000)
    path = written(files, TOKENS, b"keys and values")
    assert callable(damage)
    damage(path)
    (saved,) = files.index()
    with pytest.raises(DamagedError, match=reason):
        files.check(saved)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"tokens": 5}', b'{"identity":"x","tokens":"!","size":1}']
)
def test_a_damaged_manifest_is_removed_with_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes
) -> None:
    files = KvFiles(tmp_path, "me", 1000)
    path = written(files, TOKENS, b"keys and values")
    path.with_name(path.name + ".json").write_bytes(text)
    assert files.index() == []
    assert [*path.parent.iterdir()] == []
    assert capsys.readouterr().err.count("\n") == 1


def test_a_manifest_of_another_identity_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(KvFiles(tmp_path, "other", 1000), TOKENS, b"x")
    path.parent.rename(tmp_path / "me")
    assert KvFiles(tmp_path, "me", 1000).index() == []
    assert "another model" in capsys.readouterr().err


def test_an_incomplete_file_is_removed_when_it_is_old(tmp_path: Path) -> None:
    files = KvFiles(tmp_path, "me", 1000)
    path = written(files, TOKENS, b"x")
    path.with_name("half.123.part").write_bytes(b"half")
    path.with_name("bare").write_bytes(b"no manifest")
    assert len(files.index()) == 1
    assert len([*path.parent.iterdir()]) == 4, "they may be being written"
    for name in ("half.123.part", "bare"):
        os.utime(path.with_name(name), (0, 0))
    assert len(files.index()) == 1
    assert len([*path.parent.iterdir()]) == 2


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    files = KvFiles(tmp_path, "me", 1000)

    def save(path: Path) -> int:
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        files.write(files.place(TOKENS, ()), TOKENS, (), save)
    assert files.index() == []
    assert [*tmp_path.glob("*/*")] == []


def test_files_of_a_killed_worker_count_and_are_removed_first(tmp_path: Path) -> None:
    files = KvFiles(tmp_path, "me", 5000)
    path = written(files, TOKENS, b"x")
    left = tmp_path / "of-another-model" / "half.123.part"
    left.parent.mkdir()
    left.write_bytes(b"x" * 3000)
    assert files.make_room(3000)
    assert left.exists(), "it may be being written"
    os.utime(left, (0, 0))
    assert files.make_room(3000)
    assert (left.exists(), path.exists()) == (False, True)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 400)), max_size=12))
def test_the_folder_never_grows_beyond_its_limit(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[str, int]]
) -> None:
    root = tmp_path_factory.mktemp("kv")
    workers = {name: KvFiles(root, name, 1500) for name in "ab"}
    paths: list[Path] = []
    for number, (name, size) in enumerate(sizes):
        assert workers[name].make_room(size + 300)
        paths.append(written(workers[name], [number], b"x" * size))
        os.utime(paths[-1].with_name(paths[-1].name + ".json"), (number, number))
        assert sum(path.stat().st_size for path in root.glob("*/*")) <= 1500
    alive = [path.exists() for path in paths]
    assert alive == sorted(alive), "the oldest go first"
    assert not workers["a"].make_room(1501)


def test_a_replaced_file_has_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"one")
    first = fingerprint(path)
    assert fingerprint(path) == first
    path.write_bytes(b"two")
    assert fingerprint(path) != first
    assert identity_of({"a": 1, "b": 2}) == identity_of({"b": 2, "a": 1})
    assert identity_of({"a": 1}) != identity_of({"a": 2})


def test_a_disabled_folder_stays_disabled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = KvFiles(tmp_path, "me", 1000)
    written(files, TOKENS, b"x")
    assert files.usable
    files.disable("it forgets")
    assert not KvFiles(tmp_path, "me", 1000).usable
    assert files.index() == []
    assert "it forgets" in capsys.readouterr().err
