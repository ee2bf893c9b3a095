"""Log files: rotation, names, full disks."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from swapd.system import logs
from tests.disk import fill, small_disk


def test_logs_keep_their_last_lines_and_rotate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 2000)
    all_logs = logs.Logs(tmp_path, "info", foreground=False)
    for i in range(500):
        all_logs.own.info("line %d", i)
        all_logs.of("ls/a model").info("said %d", i)
    assert all_logs.last()[-1].endswith("line 499")
    assert all_logs.last("ls/a model")[-1].endswith("said 499")
    assert all_logs.last("unknown") == []
    all_logs.close()
    sizes = {f.name: f.stat().st_size for f in tmp_path.iterdir()}
    name = logs.log_file(tmp_path, "ls/a model").name
    assert {"swapd.log", "swapd.log.1", "swapd.log.2", name, f"{name}.1"} <= sizes.keys()
    assert len(sizes) == 6
    assert max(sizes.values()) <= 2000


def test_no_two_models_share_a_log(tmp_path: Path) -> None:
    names = ["x/y", "x-y", "x y", "x.y", "é" * 200, "é" * 201, "", "..", "/", "a\0b", "\udcff"]
    files = [logs.log_file(tmp_path, name) for name in names]
    assert len(set(files)) == len(names)
    assert all(file.parent == tmp_path for file in files)
    assert all(len(os.fsencode(file.name)) < 250 for file in files)
    assert files[1].name == "model-x-y.log"


def test_lines_lost_on_a_full_disk_are_counted(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        all_logs = logs.Logs(disk, "info", foreground=False)
        all_logs.own.info("before")
        filling = fill(disk)
        for i in range(1000):
            all_logs.own.info("line %d", i)
        assert all_logs.last()[-1].endswith("line 999")
        filling.unlink()
        all_logs.own.info("after")
        all_logs.close()
        lines = all_logs.own_file.read_text().splitlines()
    assert lines[0].endswith("before")
    assert lines[-1].endswith("after")
    missing = re.fullmatch(r"(\d+) lines are missing here: No space left on device", lines[-2])
    assert missing
    assert 800 < int(missing[1]) < 1000


def test_a_removed_log_folder_loses_lines_only(tmp_path: Path) -> None:
    all_logs = logs.Logs(tmp_path / "logs", "info", foreground=False)
    (tmp_path / "logs").rmdir()
    all_logs.own.info("nowhere to write it")
    (tmp_path / "logs").mkdir()
    all_logs.own.info("here")
    all_logs.close()
    assert "1 lines are missing here: No such file" in all_logs.own_file.read_text()
