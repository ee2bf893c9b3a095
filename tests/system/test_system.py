"""The small effects: locks, ports, logs, memory, tasks, headers, watched files."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from swapd.process import memory
from swapd.process.ports import free_port, port_owner
from swapd.process.prefetch import prefetch
from swapd.proxy.forward import HOP_BY_HOP, end_to_end
from swapd.system import logs
from swapd.system.aio import Tasks
from swapd.system.file_watcher import FileWatch
from swapd.system.lockfile import InstanceLock, LockHeldError, LockHolder, read_holder
from tests.disk import fill, small_disk
from tests.specs import model_spec

HOLD = (
    "import sys, pathlib\n"
    "from swapd.system.lockfile import HomeLock\n"
    "lock = HomeLock(pathlib.Path(sys.argv[1]))\n"
    "lock.announce('http://127.0.0.1:1', pathlib.Path('x.log'), pathlib.Path('c'), None)\n"
    "print(flush=True)\n"
    "sys.stdin.read()\n"
)


def _holder(state: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_a_home_is_held_once_and_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    first = _holder(tmp_path)
    try:
        with pytest.raises(LockHeldError) as caught:
            InstanceLock(tmp_path)
        assert caught.value.holder is not None
        assert caught.value.holder.pid == first.pid
        assert caught.value.holder.alive() is not None
    finally:
        _end(first)
    stale = read_holder(tmp_path)
    assert stale is not None
    assert stale.alive() is None
    second = _holder(tmp_path)
    _end(second)
    assert second.pid != first.pid


def test_a_recycled_pid_is_not_taken_for_the_holder() -> None:
    assert LockHolder(os.getpid(), born="x:1", endpoint="", log="").alive() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff"])
def test_a_damaged_lock_file_names_nobody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    assert read_holder(tmp_path) is None
    _end(_holder(tmp_path))


def test_a_free_port_can_be_had_and_its_holder_is_known() -> None:
    port = free_port()
    assert port_owner(port) is None
    with socket.create_server(("127.0.0.1", port)):
        assert port_owner(port) == os.getpid()


@given(
    st.lists(st.tuples(st.sampled_from([*HOP_BY_HOP, "Accept", "X-A", "X-B"]), st.just("v"))),
    st.lists(st.sampled_from(["X-A", "close", "x-b"])),
)
def test_no_header_of_one_connection_goes_further(
    pairs: list[tuple[str, str]], named: list[str]
) -> None:
    headers = CIMultiDict([*pairs, ("Connection", ", ".join(named))])
    left = {name.lower() for name in end_to_end(CIMultiDictProxy(headers))}
    assert not left & (HOP_BY_HOP | {n.lower() for n in named})
    assert ("accept" in left) == any(name == "Accept" for name, _ in pairs)


def test_memory_held_grows_with_what_a_process_takes() -> None:
    def held(megabytes: int) -> int:
        code = f"x = bytearray({megabytes} * 2**20); print(flush=True); input()"
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        seen = memory.sample([process.pid])
        _end(process)
        assert 0 < seen.used_percent < 100
        return seen.held[process.pid]

    assert 90 * 2**20 < held(100) - held(0) < 110 * 2**20


def test_a_process_that_is_gone_holds_nothing() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert memory.sample([process.pid]).held == {}


def test_logs_keep_their_last_lines_and_a_bound_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 2000)
    both = logs.Logs(tmp_path, "info", foreground=False)
    for i in range(500):
        both.own.info("line %d", i)
        both.of("ls/a model").info("said %d", i)
    assert both.last()[-1].endswith("line 499")
    assert both.last("ls/a model")[-1].endswith("said 499")
    assert both.last("nobody") == []
    both.close()
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


def test_a_full_disk_costs_lines_and_says_how_many(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        both = logs.Logs(disk, "info", foreground=False)
        both.own.info("before")
        filling = fill(disk)
        for i in range(1000):
            both.own.info("line %d", i)
        assert both.last()[-1].endswith("line 999")
        filling.unlink()
        both.own.info("after")
        both.close()
        lines = both.own_file.read_text().splitlines()
    assert lines[0].endswith("before")
    assert lines[-1].endswith("after")
    missing = re.fullmatch(r"(\d+) lines are missing here: No space left on device", lines[-2])
    assert missing
    assert 800 < int(missing[1]) < 1000


def test_a_log_whose_folder_goes_away_costs_lines_only(tmp_path: Path) -> None:
    both = logs.Logs(tmp_path / "logs", "info", foreground=False)
    (tmp_path / "logs").rmdir()
    both.own.info("nowhere to write it")
    (tmp_path / "logs").mkdir()
    both.own.info("here")
    both.close()
    assert "1 lines are missing here: No such file" in both.own_file.read_text()


def test_a_lock_tells_on_a_full_disk_that_it_is_about_to_go(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        lock = InstanceLock(disk)
        lock.announce("http://127.0.0.1:1", Path("x.log"), Path("c"))
        fill(disk)
        lock.announce("http://127.0.0.1:1", Path("x.log"), Path("c"), closing=True)
        holder = read_holder(disk)
        assert holder is not None
        assert holder.closing
        lock.retire()
        assert read_holder(disk) is None


async def test_a_failed_task_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("test of tasks")
    tasks = Tasks(log)

    async def fail() -> None:
        raise ValueError("lost?")

    with pytest.raises(ValueError, match="lost"):
        await tasks.run(fail(), "the task")
    assert "the task failed" in caplog.text
    assert "lost?" in caplog.text
    waits = tasks.run(asyncio.Event().wait(), "waits")  # type: ignore[arg-type]
    await tasks.end()
    assert waits.cancelled()


async def test_a_file_behind_links_is_noticed_when_one_of_them_leads_elsewhere(
    tmp_path: Path,
) -> None:
    """As a cluster mounts a configuration: config.yaml -> ..data/config.yaml, ..data -> ..1/."""
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


@pytest.mark.parametrize("how", ["write", "replace"])
async def test_a_changed_file_is_noticed_and_its_neighbours_are_not(
    tmp_path: Path, how: str
) -> None:
    file, neighbour = tmp_path / "config.yaml", tmp_path / "other.yaml"
    file.write_text("1")
    changed, beside = asyncio.Event(), asyncio.Event()
    watches = [FileWatch([file], changed.set), FileWatch([neighbour], beside.set)]
    neighbour.write_text("2")
    await asyncio.wait_for(beside.wait(), 10)
    assert not changed.is_set()
    if how == "write":
        file.write_text("2")
    else:
        neighbour.replace(file)
    await asyncio.wait_for(changed.wait(), 10)
    for watch in watches:
        watch.close()


async def test_files_are_read_ahead_and_those_that_are_not_there_cost_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "m.gguf").write_bytes(bytes(2**20))
    for argv in (("w", "-m", "m.gguf"), ("w", "--model=none.gguf", "a\0b.gguf"), ("w",)):
        await prefetch(model_spec("m", argv), tmp_path)
