"""What an earlier life of swapd left behind is found and ended; strangers are not touched."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from swapd.process.orphans import MARK, Guardian, PidFile, PidRecord, PidRegistry, kill_orphans
from swapd.system.process_identity import program_name, start_time
from tests.daemon import Swapd, alive, config, eventually, said
from tests.disk import fill, small_disk
from tests.fixtures import demo, fake
from tests.process.conftest import LOG


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of somebody's, head of a session of its own, with a child in it."""
    process = subprocess.Popen(
        ["sh", "-c", "sleep 600 & echo; wait"], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.stdout.close()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _note(file: Path, *workers: PidRecord, mark: str = "nobody's") -> Path:
    file.write_bytes(msgspec.json.encode(PidFile(mark, [*workers])))
    return file


def _page(file: Path) -> PidFile:
    return msgspec.json.decode(file.read_bytes(), type=PidFile)


def _session(head: int) -> list[int]:
    return [pid for pid in psutil.pids() if alive(pid) and os.getsid(pid) == head]


def test_a_worker_and_its_session_are_ended(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    pid = sleeper.pid
    assert len(_session(pid)) == 2
    noted = PidRecord(pid, start_time(pid), program_name(pid))
    kill_orphans(_note(tmp_path / "r", noted), LOG)
    eventually(lambda: not _session(pid))


def test_who_has_only_the_number_of_a_worker_is_not_touched(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    pid = sleeper.pid
    others = [
        PidRecord(pid, start_time(os.getpid()), program_name(pid)),
        PidRecord(pid, start_time(pid), sys.executable),
    ]
    for noted in others:
        kill_orphans(_note(tmp_path / "r", noted), LOG)
        assert len(_session(pid)) == 2


def test_children_whose_head_has_gone_are_known_by_the_mark(tmp_path: Path) -> None:
    """The head is another program by now than was noted, and then it has ended."""
    pids = []
    for mark in ("ours", "another's"):
        process = subprocess.Popen(
            ["sh", "-c", "sleep 600 & echo $!; read x"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, MARK: mark},
        )
        assert process.stdout is not None
        assert process.stdin is not None
        child = int(process.stdout.readline())
        noted = PidRecord(process.pid, start_time(process.pid), "/bin/other")
        process.stdin.close()
        process.wait()
        process.stdout.close()
        assert alive(child)
        kill_orphans(_note(tmp_path / "r", noted, mark="ours"), LOG)
        pids.append(child)
    try:
        assert not alive(pids[0])
        assert alive(pids[1])
    finally:
        os.kill(pids[1], signal.SIGKILL)


def test_a_page_that_is_damaged_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "workers.json"
    kill_orphans(file, LOG)
    for content in (b"", b'{"mark": 1}', b"\xff\x00", b'{"mark": "x", "work'):
        file.write_bytes(content)
        kill_orphans(file, logging.getLogger("left-overs"))
        assert not file.exists()
        assert (tmp_path / "workers.json.damaged").read_bytes() == content
        assert "workers.json is damaged" in caplog.text


def test_the_page_says_who_runs_and_survives_a_full_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        register = PidRegistry(disk / "workers.json", logging.getLogger("register"))
        register.add(os.getpid())
        (noted,) = _page(disk / "workers.json").workers
        assert (noted.pid, noted.born) == (os.getpid(), start_time(os.getpid()))
        fill(disk)
        register.remove(os.getpid())
        assert _page(disk / "workers.json") == PidFile(register.mark, [])
        assert not caplog.text


def test_a_page_for_which_there_is_no_room_is_told_once_and_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        filling = fill(disk)
        register = PidRegistry(disk / "workers.json", logging.getLogger("register"))
        register.add(os.getpid())
        assert caplog.text.count("can't be written (No space left on device)") == 1
        filling.unlink()
        register.add(os.getppid())
        assert len(_page(disk / "workers.json").workers) == 2


def test_of_an_earlier_page_nothing_is_left_and_one_that_was_taken_away_is_made_anew(
    tmp_path: Path,
) -> None:
    file = tmp_path / "workers.json"
    file.write_bytes(b"x" * 100_000)
    register = PidRegistry(file, LOG)
    register.add(os.getpid())
    assert len(_page(file).workers) == 1
    file.unlink()
    register.add(os.getppid())
    assert len(_page(file).workers) == 2


def test_a_guardian_that_is_killed_is_replaced_by_one_that_knows_all(tmp_path: Path) -> None:
    guardian = Guardian(LOG, PidRegistry(tmp_path / "r", LOG))
    watched = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        guardian.watch(watched.pid)
        for _ in range(2):
            before = guardian.pid
            os.kill(before, signal.SIGKILL)
            eventually(lambda: guardian.pid != before and alive(guardian.pid))  # noqa: B023
        guardian.dismiss()
        assert watched.wait(timeout=10) == -signal.SIGKILL
    finally:
        watched.kill()
        watched.wait()


def _guardian_of(swapd: Swapd) -> int:
    (found,) = [
        child.pid
        for child in psutil.Process(swapd.process.pid).children()
        if "swapd-guardian" in child.cmdline()
    ]
    return found


def test_the_next_start_ends_what_swapd_and_its_guardian_left(tmp_path: Path) -> None:
    """The guardian is stopped first, so that it can't do anything between the two kills."""
    models = {"a": fake("a", "--deaf --child"), "bard": demo("bard")}
    with Swapd(tmp_path, config(models)) as swapd:
        for name in models:
            assert said(swapd.ask(name))
        pids = {w["model"]: w["pid"] for w in swapd.running()}
        guardian = _guardian_of(swapd)
        os.kill(guardian, signal.SIGSTOP)
        swapd.process.kill()
        swapd.process.wait()
        os.kill(guardian, signal.SIGKILL)
        eventually(lambda: not alive(guardian))
        assert len(_session(pids["a"])) == 2
        eventually(lambda: not alive(pids["bard"]))  # It heeds the end of its standard input.
        with Swapd(tmp_path, config(models)) as again:
            eventually(lambda: not _session(pids["a"]))
            assert f"(pid {pids['a']}): killed" in again.log()
            assert said(again.ask("a"))
