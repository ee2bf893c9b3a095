"""Orphans of an earlier run are found and killed; other processes stay."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from swapd.process.orphans import RUN_ID, Guardian, PidFile, PidRecord, PidRegistry, kill_orphans
from swapd.system.process_identity import environment_variable, program_name, start_time
from tests.daemon import ROOT, Swapd, alive, answer_text, config, eventually
from tests.disk import fill, small_disk
from tests.fixtures import demo, fake
from tests.process.conftest import LOG

RUN = "0123456789abcdef0123456789abcdef"
OTHER_RUN = "f" * 32


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A session leader with a child in its session, both of the run `RUN`."""
    process = subprocess.Popen(
        ["sh", "-c", "sleep 600 & echo; wait"],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, RUN_ID: RUN},
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.stdout.close()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _write(file: Path, *workers: PidRecord, run_id: str = RUN) -> Path:
    file.write_bytes(msgspec.json.encode(PidFile(run_id, [*workers])))
    return file


def _read(file: Path) -> PidFile:
    return msgspec.json.decode(file.read_bytes(), type=PidFile)


def _session(leader: int) -> list[int]:
    return [pid for pid in psutil.pids() if alive(pid) and os.getsid(pid) == leader]


def test_a_worker_and_its_session_are_killed(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    pid = sleeper.pid
    assert len(_session(pid)) == 2
    record = PidRecord(pid, start_time(pid), program_name(pid))
    kill_orphans(_write(tmp_path / "r", record), LOG)
    eventually(lambda: not _session(pid))


def test_a_process_that_has_only_the_pid_of_a_worker_stays(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    pid = sleeper.pid
    right = PidRecord(pid, start_time(pid), program_name(pid))
    others = [
        right,
        PidRecord(pid, start_time(os.getpid()), program_name(pid)),
        PidRecord(pid, start_time(pid), sys.executable),
    ]
    for record in others:
        for run_id in ("", OTHER_RUN):
            kill_orphans(_write(tmp_path / "r", record, run_id=run_id), LOG)
            assert len(_session(pid)) == 2


def test_a_child_without_the_run_id_is_killed_with_its_proven_leader(tmp_path: Path) -> None:
    leader = subprocess.Popen(
        ["sh", "-c", "env -i sleep 600 & echo; wait"],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, RUN_ID: RUN},
    )
    assert leader.stdout is not None
    leader.stdout.readline()
    leader.stdout.close()
    pid, started, program = leader.pid, start_time(leader.pid), program_name(leader.pid)
    for unproven in (PidRecord(pid, "", program), PidRecord(pid, started, "")):
        assert environment_variable(pid, RUN_ID) == RUN
        kill_orphans(_write(tmp_path / "r", unproven, run_id=OTHER_RUN), LOG)
        assert len(_session(pid)) == 2
    kill_orphans(_write(tmp_path / "r", PidRecord(pid, started, program)), LOG)
    leader.wait()
    eventually(lambda: not _session(pid))


@pytest.mark.skipif(not shutil.which("unshare"), reason="there is no unshare")
def test_no_content_of_a_state_file_harms_a_stranger_or_prevents_a_start(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """In a PID namespace of its own, so that a wrong signal reaches nothing else."""
    variants = 10_000 if pytestconfig.getoption("--long") else 1_000
    done = subprocess.run(
        [
            *("unshare", "--pid", "--fork", "--mount-proc"),
            *(sys.executable, "-m", "tests.process.hostile_state", str(tmp_path), str(variants)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare:" in done.stderr:
        pytest.skip(f"there can be no PID namespace: {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{variants} variants" in done.stdout


def test_children_of_an_ended_leader_are_found_by_the_run_id(tmp_path: Path) -> None:
    """The leader ran another program than the recorded one, and has ended."""
    pids = []
    for run_id in (RUN, OTHER_RUN):
        process = subprocess.Popen(
            ["sh", "-c", "sleep 600 & echo $!; read x"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, RUN_ID: run_id},
        )
        assert process.stdout is not None
        assert process.stdin is not None
        child = int(process.stdout.readline())
        record = PidRecord(process.pid, start_time(process.pid), "/bin/other")
        process.stdin.close()
        process.wait()
        process.stdout.close()
        assert alive(child)
        kill_orphans(_write(tmp_path / "r", record), LOG)
        pids.append(child)
    try:
        assert not alive(pids[0])
        assert alive(pids[1])
    finally:
        os.kill(pids[1], signal.SIGKILL)


def test_a_damaged_file_is_quarantined(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "workers.json"
    kill_orphans(file, LOG)
    for content in (b"", b'{"run_id": 1}', b"\xff\x00", b'{"run_id": "x", "work'):
        file.write_bytes(content)
        kill_orphans(file, logging.getLogger("orphans"))
        assert not file.exists()
        assert (tmp_path / "workers.json.damaged").read_bytes() == content
        assert "workers.json is damaged" in caplog.text


def test_the_file_lists_the_workers_on_a_full_disk_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        registry = PidRegistry(disk / "workers.json", logging.getLogger("registry"))
        registry.add(os.getpid())
        (record,) = _read(disk / "workers.json").workers
        assert (record.pid, record.started) == (os.getpid(), start_time(os.getpid()))
        fill(disk)
        registry.remove(os.getpid())
        assert _read(disk / "workers.json") == PidFile(registry.run_id, [])
        assert not caplog.text


def test_a_failed_write_is_logged_once_and_made_up_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        filling = fill(disk)
        registry = PidRegistry(disk / "workers.json", logging.getLogger("registry"))
        registry.add(os.getpid())
        assert caplog.text.count("can't be written (No space left on device)") == 1
        filling.unlink()
        registry.add(os.getppid())
        assert len(_read(disk / "workers.json").workers) == 2


def test_an_earlier_file_is_overwritten_and_a_removed_one_created_again(
    tmp_path: Path,
) -> None:
    file = tmp_path / "workers.json"
    file.write_bytes(b"x" * 100_000)
    registry = PidRegistry(file, LOG)
    registry.add(os.getpid())
    assert len(_read(file).workers) == 1
    file.unlink()
    registry.add(os.getppid())
    assert len(_read(file).workers) == 2


def test_a_killed_guardian_is_replaced_with_all_its_groups(tmp_path: Path) -> None:
    guardian = Guardian(LOG, PidRegistry(tmp_path / "r", LOG))
    watched = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        guardian.watch(watched.pid)
        for _ in range(2):
            before = guardian.pid
            os.kill(before, signal.SIGKILL)
            eventually(lambda: guardian.pid != before and alive(guardian.pid))  # noqa: B023
        guardian.close()
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


def test_the_next_start_kills_the_orphans_of_swapd_and_its_guardian(tmp_path: Path) -> None:
    """The guardian is stopped first, so that it can't act between the two kills."""
    models = {"a": fake("a", "--deaf --child"), "bard": demo("bard")}
    with Swapd(tmp_path, config(models)) as swapd:
        for name in models:
            assert answer_text(swapd.ask(name))
        pids = {w["model"]: w["pid"] for w in swapd.running()}
        guardian = _guardian_of(swapd)
        os.kill(guardian, signal.SIGSTOP)
        swapd.process.kill()
        swapd.process.wait()
        os.kill(guardian, signal.SIGKILL)
        eventually(lambda: not alive(guardian))
        assert len(_session(pids["a"])) == 2
        eventually(lambda: not alive(pids["bard"]))  # It ends with its standard input.
        with Swapd(tmp_path, config(models)) as again:
            eventually(lambda: not _session(pids["a"]))
            assert f"(pid {pids['a']}): killed" in again.log()
            assert answer_text(again.ask("a"))
