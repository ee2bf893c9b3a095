"""Signs of liveness seen from outside a worker, and kills by the OOM killer."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from swapd.process.liveness import Liveness, process_activity
from swapd.process.memory import oom_kills
from swapd.system.aio import now
from tests.daemon import eventually
from tests.process.conftest import Spawn

BLOCK = 4096
READER = """
import mmap, os, sys
file, gate = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), open(sys.argv[2], "rb", 0)
block = mmap.mmap(-1, 4096)
while gate.read(1):
    os.preadv(file, [block], 0)
"""
MEMORY_HOG = """
import sys
open(sys.argv[1], "rb").read(1)
blocks = []
while True:
    blocks.append(b"x" * 2**20)
"""
GROUPS = Path("/sys/fs/cgroup/memory")


def test_a_worker_that_waits_for_all_its_clients_is_not_silent() -> None:
    liveness = Liveness(last_heartbeat=1.0, last_activity=2.0, leases=2, held=1)
    assert liveness.last() == 2.0
    liveness.held = 2
    before = now()
    assert before <= liveness.last() <= now()


def _is_read_past_the_cache(file: Path) -> bool:
    if not hasattr(os, "O_DIRECT"):
        return False
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return file.stat().st_dev != Path("/dev/shm").stat().st_dev


async def test_a_worker_that_reads_from_the_disk_makes_progress(
    spawn: Spawn, tmp_path: Path
) -> None:
    script, file, gate = (tmp_path / name for name in ("reader.py", "file", "gate"))
    script.write_text(READER)
    file.write_bytes(b"x" * BLOCK)
    os.mkfifo(gate)
    if not _is_read_past_the_cache(file):
        pytest.skip("files can't be read past the page cache here")
    process, _ = spawn(f"{sys.executable} {script} {file} {gate}")
    with gate.open("wb", buffering=0) as gate_end:
        gate_end.write(b".")
        if not _reads(process.pid):
            pytest.skip("the system does not count reads from this disk")
        liveness = Liveness()
        await liveness.look(process)
        await liveness.look(process)
        assert liveness.last_activity == 0.0, "reads before the first look are no sign"
        before = process_activity(process.pid).read
        gate_end.write(b".")
        eventually(lambda: process_activity(process.pid).read > before)
        await liveness.look(process)
        assert liveness.last_activity > 0.0


def _reads(pid: int) -> bool:
    try:
        return eventually(lambda: process_activity(pid).read >= BLOCK, within=5.0)
    except AssertionError:
        return False


@pytest.mark.skipif(
    oom_kills() is None or not os.access(GROUPS, os.W_OK) or os.geteuid() != 0,
    reason="a memory limit that kills needs a writable control group",
)
async def test_a_kill_by_the_oom_killer_is_not_an_external_kill(
    spawn: Spawn, tmp_path: Path
) -> None:
    script, gate = tmp_path / "memory_hog.py", tmp_path / "gate"
    script.write_text(MEMORY_HOG)
    os.mkfifo(gate)
    group = GROUPS / f"swapd-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(48 * 2**20))
        process, listener = spawn(f"{sys.executable} {script} {gate}")
        (group / "cgroup.procs").write_text(str(process.pid))
        with gate.open("wb", buffering=0) as gate_end:
            gate_end.write(b".")
        assert await listener.end() == "the worker was ended by SIGKILL"
        assert listener.killed_externally is False
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()
