"""Changes of watched files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import watchfiles

from swapd.system.file_watcher import FileWatch, FolderWatch


async def test_a_changed_link_on_the_way_to_a_file_is_noticed(
    tmp_path: Path,
) -> None:
    """The layout of a mounted ConfigMap: config.yaml -> ..data/config.yaml, ..data -> ..1/."""
    for version in ("..1", "..2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "config.yaml").write_text(version)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "config.yaml").symlink_to("..data/config.yaml")
    changed = asyncio.Event()
    watch = FileWatch([tmp_path / "config.yaml"], changed.set)
    (tmp_path / "new").symlink_to("..2")
    (tmp_path / "new").replace(tmp_path / "..data")
    await asyncio.wait_for(changed.wait(), 10)
    changed.clear()
    (tmp_path / "..2/config.yaml").write_text("3")
    await asyncio.wait_for(changed.wait(), 10)
    watch.close()


@pytest.mark.parametrize("change", ["write", "replace"])
async def test_only_changes_of_the_watched_file_are_noticed(tmp_path: Path, change: str) -> None:
    file, neighbour = tmp_path / "config.yaml", tmp_path / "other.yaml"
    file.write_text("1")
    changed, other_changed = asyncio.Event(), asyncio.Event()
    watches = [FileWatch([file], changed.set), FileWatch([neighbour], other_changed.set)]
    neighbour.write_text("2")
    await asyncio.wait_for(other_changed.wait(), 10)
    assert not changed.is_set()
    if change == "write":
        file.write_text("2")
    else:
        neighbour.replace(file)
    await asyncio.wait_for(changed.wait(), 10)
    for watch in watches:
        watch.close()


async def test_a_change_right_after_the_watch_was_made_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for attempt in range(2):
        file, in_folder = asyncio.Event(), asyncio.Event()
        watches = [
            FileWatch([tmp_path / "config.yaml"], file.set),
            FolderWatch([tmp_path], in_folder.set),
        ]
        (tmp_path / "config.yaml").write_text(str(attempt))
        await asyncio.wait_for(file.wait(), 10)
        await asyncio.wait_for(in_folder.wait(), 10)
        for watch in watches:
            watch.close()


async def test_a_watch_that_cannot_start_raises_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_folders: str, **_options: object) -> None:
        raise OSError("no watch is left")

    monkeypatch.setattr(watchfiles, "watch", fail)
    with pytest.raises(OSError, match="no watch is left"):
        FolderWatch([tmp_path], lambda: None)
