"""Control groups in folders laid out as in the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from swapd.process.memory import GroupMemory, group_memory

MIB = 2**20


def _group(folder: Path, limit: int | str, used: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - cache}\ninactive_file {cache}\n")


def _member(folder: Path, path: str) -> Path:
    file = folder / "membership"
    file.write_text(f"9:name=systemd:/x\n0::{path}\n")
    return file


def test_the_ancestor_with_least_memory_left_counts_without_cache(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    _group(root / "a", 100 * MIB, 90 * MIB, cache=60 * MIB)
    _group(root / "a/b", 1000 * MIB, 25 * MIB)
    assert group_memory(root, _member(tmp_path, "/a/b")) == GroupMemory(100 * MIB, 30 * MIB)


def test_in_a_container_the_root_is_the_group_of_the_process(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    _group(root, 512 * MIB, 128 * MIB)
    assert group_memory(root, _member(tmp_path, "/")) == GroupMemory(512 * MIB, 128 * MIB)


@pytest.mark.parametrize("limit", ["max", "", "nonsense"])
def test_a_group_without_a_limit_is_none(tmp_path: Path, limit: str) -> None:
    root = tmp_path / "cgroup"
    _group(root / "a", limit, 5)
    assert group_memory(root, _member(tmp_path, "/a")) is None


def test_without_control_groups(tmp_path: Path) -> None:
    assert group_memory(tmp_path, tmp_path / "missing") is None
    assert group_memory(tmp_path / "missing", _member(tmp_path, "/a")) is None
    (tmp_path / "old").write_text("4:memory:/a\n")
    assert group_memory(tmp_path, tmp_path / "old") is None
