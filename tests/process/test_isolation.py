"""Isolation of workers: their pipes, a clean environment, and their limits."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path

import psutil
import pytest

from swapd.domain.models import WorkerLimits
from swapd.process.orphans import RUN_ID
from swapd.process.spawn import SpawnContext, worker_environment
from swapd.process.worker_process import WorkerProcess
from tests.daemon import Swapd, answer_text, config, eventually
from tests.fixtures import demo, fake
from tests.process.conftest import LOG, Listener
from tests.specs import model_spec

SECRETS = {
    "OPENAI_API_KEY": "sk-1",
    "HF_TOKEN": "hf_1",
    "LLAMA_API_KEY": "sk-2",
    "AWS_SECRET_ACCESS_KEY": "s",
    "DATABASE_URL": "postgres://me:password@db",
    "SWAPD_HOME": "/home",
}
USEFUL = {
    "PATH": "/bin",
    "HOME": "/root",
    "LC_ALL": "C",
    "LLAMA_CACHE": "/cache",
    "CUDA_VISIBLE_DEVICES": "1",
    "ROCR_VISIBLE_DEVICES": "1",
}


def test_workers_inherit_default_and_named_variables_but_no_secrets() -> None:
    environ = {**SECRETS, **USEFUL, "MINE": "1", "MINE_TOO": "2", "MINE_KEY": "3"}
    assert worker_environment(environ, ()) == USEFUL
    assert worker_environment(environ, ("MINE_*", "HF_TOKEN")) == {
        **USEFUL,
        "MINE_TOO": "2",
        "HF_TOKEN": "hf_1",
    }
    assert worker_environment(environ, ("*",)).keys() == environ.keys() - {
        *("OPENAI_API_KEY", "HF_TOKEN", "LLAMA_API_KEY", "AWS_SECRET_ACCESS_KEY", "MINE_KEY")
    }


def test_the_environment_of_real_workers_is_clean(tmp_path: Path) -> None:
    """An external worker, a built-in worker, and a worker from the warm standby."""
    models = {
        "external": fake("external", env=["OWN=1"]),
        "builtin": demo("alice", env=["OWN=1"]),
        "standby": demo("bard"),
    }
    text = config(models, spare=True, pass_env=["PASSED"])
    with Swapd(tmp_path, text, PASSED="2", CUDA_VISIBLE_DEVICES="0", **_without_home()) as swapd:
        for name in models:
            assert answer_text(swapd.ask(name))
            found = psutil.Process(swapd.worker(name)["pid"]).environ()
            assert not SECRETS.keys() & found.keys()
            assert len(found[RUN_ID]) == 32
            assert found["PASSED"] == "2"
            assert found["CUDA_VISIBLE_DEVICES"] == "0"
            assert found["PATH"] == os.environ["PATH"]
            assert ("OWN" in found) == (name != "standby")
            # No debugger is started when ggml aborts: its output would hide the reason.
            assert found.get("GGML_NO_BACKTRACE") == (None if name == "external" else "1")


def _without_home() -> dict[str, str]:
    return {name: value for name, value in SECRETS.items() if name != "SWAPD_HOME"}


def _descriptors(pid: int) -> dict[int, str]:
    found = {}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # The descriptor has been closed.
            found[int(fd.name)] = str(fd.readlink())
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads descriptors from /proc")
async def test_a_worker_inherits_only_its_pipes(place: SpawnContext) -> None:
    inherited = os.open(place.home, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    listener = Listener()
    spec = model_spec("m", ("sleep", "600"), builtin=False, proxy="http://127.0.0.1:${PORT}")
    process = WorkerProcess(1, spec, place, listener, LOG)
    try:
        # At the start of the program, its loader has libraries open.
        eventually(lambda: _descriptors(process.pid).keys() == {0, 1, 2})
        held = _descriptors(process.pid)
        assert all(to.startswith("pipe:") for to in held.values())
        assert os.getsid(process.pid) == process.pid
    finally:
        os.close(inherited)
        process.kill()
        await listener.end()


def _runs(
    place: SpawnContext, listener: Listener, script: str, limits: WorkerLimits
) -> WorkerProcess:
    argv = (sys.executable, "-c", script)
    proxy = "http://127.0.0.1:${PORT}"
    spec = model_spec("m", argv, builtin=False, proxy=proxy, limits=limits)
    return WorkerProcess(1, spec, place, listener, LOG)


async def test_limits_apply_to_the_worker_and_its_children(
    place: SpawnContext, tmp_path: Path
) -> None:
    listener = Listener()
    limits = WorkerLimits(memory=300 * 2**20, files=99, nice=7)
    script = "import subprocess,sys; sys.stdin.read(1); subprocess.run(['sleep', '600'])"
    process = _runs(place, listener, script, limits)
    try:
        assert process._process.stdin is not None
        process._process.stdin.write(b".")
        process._process.stdin.flush()
        (child,) = eventually(lambda: psutil.Process(process.pid).children())
        assert child.nice() == 7
        if sys.platform == "linux":
            assert child.rlimit(resource.RLIMIT_NOFILE) == (99, 99)
            assert child.rlimit(resource.RLIMIT_DATA) == (300 * 2**20,) * 2
    finally:
        process.kill()
        await listener.end()


LEAKS = """
import mmap, sys
with open("big", "wb") as file:
    file.truncate(600 * 2**20)
with open("big", "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
assert not any(mapped[i] for i in range(0, len(mapped), 2**20))
print("the file was read", flush=True)
held = []
while True:
    held.append(bytearray(2**20))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
async def test_a_leak_ends_at_the_limit_and_mapped_files_do_not_count(place: SpawnContext) -> None:
    listener = Listener()
    _runs(place, listener, LEAKS, WorkerLimits(memory=200 * 2**20))
    reason = await listener.end()
    assert "exit status 1" in reason
    assert "the file was read" in reason
    assert reason.endswith("MemoryError (its limits.memory, 200 MiB, may be too small)")


@pytest.mark.parametrize(
    "script", ["import os; os.abort()", "raise MemoryError", 'exit("can\'t start new thread")']
)
async def test_a_failed_start_names_the_limit_that_may_be_the_cause(
    place: SpawnContext, script: str
) -> None:
    for limits in (WorkerLimits(memory=300 * 2**20), WorkerLimits(nice=1)):
        listener = Listener()
        _runs(place, listener, script, limits)
        assert ("limits.memory, 300 MiB" in await listener.end()) == bool(limits.memory)


@pytest.mark.skipif(sys.platform != "linux", reason="files are limited on Linux only")
async def test_a_limit_that_cannot_be_set_fails_the_start_and_leaves_no_process(
    place: SpawnContext,
) -> None:
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(OSError, match="its limits can't be set: "):
        _runs(place, Listener(), "input()", WorkerLimits(files=2**60))
    assert {child.pid for child in psutil.Process().children()} == before
