"""Worker processes, for real: the contract heard, signals, orphans, strangers."""

from __future__ import annotations

import asyncio
import http.server
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import aiohttp
import pytest

from swapd.process.memory import oom_kills
from swapd.process.readiness import PortOwnerError, wait_until_ready
from swapd.proxy.forward import failure_message, new_session
from tests.daemon import FAKE, alive, eventually
from tests.process.conftest import Spawn
from workers.protocol import DeviceReport

LOG = logging.Logger("test")


async def test_a_worker_of_ours_tells_its_own_address(spawn: Spawn) -> None:
    process, heard = spawn(FAKE)
    word = await heard.message()
    assert word.ready
    assert word.slots == 4
    assert process.base_url == f"http://127.0.0.1:{word.port}"
    assert os.getsid(process.pid) == process.pid


async def test_a_worker_of_ours_tells_of_its_devices(spawn: Spawn) -> None:
    device = '{"name":"CUDA0","total":8000,"free":5000,"held":3000,"more":0}'
    _, heard = spawn(f"{FAKE} --device {device}")
    assert (await heard.message()).devices == (DeviceReport("CUDA0", 8000, 5000, 3000),)


async def test_it_ends_at_sigterm_with_status_0(spawn: Spawn) -> None:
    process, heard = spawn(FAKE)
    await heard.message()
    process.stop()
    assert await heard.end() == "the worker ended with exit status 0"
    assert not alive(process.pid)


async def test_its_own_reason_is_the_reason(spawn: Spawn) -> None:
    _, heard = spawn(f"{FAKE} --fail no-such-tensor")
    assert (await heard.load_error()).error == "no-such-tensor"
    assert await heard.end() == "no-such-tensor"


async def test_a_signal_is_named_and_the_last_line_told(spawn: Spawn) -> None:
    process, heard = spawn(f"{sys.executable} -c print('some[last]words');__import__('os').abort()")
    assert await heard.end() == "the worker was ended by SIGABRT: some[last]words"
    process.stop()  # Too late, and no harm.


def _descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="no real-time signals here")
async def test_a_signal_without_a_name_has_its_number(spawn: Spawn) -> None:
    worker, heard = spawn(FAKE)
    await heard.message()
    os.kill(worker.pid, 40)
    assert await heard.end() == "the worker was ended by signal 40"


async def test_the_last_lines_tell_why(spawn: Spawn) -> None:
    script = "for i in 1 2 3 4 5 6 7; do echo line-$i >&2; done; exit 9"
    _, heard = spawn("sh", argv=("sh", "-c", script), builtin=False)
    assert await heard.end() == (
        "the worker ended with exit status 9: line-3 | line-4 | line-5 | line-6 | line-7"
    )


async def test_what_it_printed_of_requests_is_no_reason(spawn: Spawn, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"echo loading; read x < {gate}; echo a prompt; exit 9"
    process, heard = spawn("sh", argv=("sh", "-c", script), builtin=False)
    process.came_up()
    with gate.open("r+b", buffering=0) as both_ends:
        both_ends.write(b"on\n")
        ended = await heard.end()
    assert ended == "the worker ended with exit status 9"


async def test_a_kill_leaves_no_last_words(spawn: Spawn) -> None:
    _, heard = spawn("sh", argv=("sh", "-c", "echo not why; kill -9 $$"), builtin=False)
    assert await heard.end() == "the worker was ended by SIGKILL"


async def test_a_command_that_cannot_be_run_raises(spawn: Spawn) -> None:
    before = _descriptors()
    with pytest.raises(FileNotFoundError):
        spawn("no-such-program")
    assert _descriptors() == before


@pytest.mark.skipif(oom_kills() is None, reason="the system does not tell how often it kills")
async def test_a_kill_from_outside_is_an_accident_and_no_other_end_is(spawn: Spawn) -> None:
    process, heard = spawn(FAKE)
    await heard.message()
    os.kill(process.pid, signal.SIGKILL)
    assert await heard.end() == "the worker was ended by SIGKILL"
    assert heard.killed_externally
    process, heard = spawn(FAKE)
    await heard.message()
    process.kill()
    await heard.end()
    assert heard.killed_externally is False


@pytest.mark.parametrize(
    ("number", "asked", "killed_externally"),
    [
        (signal.SIGTERM, False, True),
        (signal.SIGHUP, False, True),
        (signal.SIGTERM, True, False),
        (signal.SIGSEGV, False, False),
        (signal.SIGABRT, False, False),
    ],
)
async def test_what_somebody_else_asks_to_end_met_with_an_accident(
    spawn: Spawn, number: signal.Signals, asked: bool, killed_externally: bool
) -> None:
    process, heard = spawn("sleep 600")
    if asked:
        process.stop()
    os.kill(process.pid, number)
    await heard.end()
    assert heard.killed_externally is killed_externally


async def test_a_kill_takes_the_children_too(spawn: Spawn) -> None:
    process, heard = spawn(f"{FAKE} --child --deaf")
    await heard.message()
    (child,) = _children(process.pid)
    process.kill()
    await heard.end()
    eventually(lambda: not alive(child))


async def test_children_that_a_worker_leaves_behind_are_ended(spawn: Spawn) -> None:
    process, heard = spawn(f"{FAKE} --child")
    await heard.message()
    (child,) = _children(process.pid)
    process.stop()
    await heard.end()
    eventually(lambda: not alive(child))


def _children(pid: int) -> list[int]:
    out = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True)
    rows = [line.split() for line in out.stdout.splitlines()[1:]]
    return [int(child) for child, parent in rows if int(parent) == pid]


async def test_descriptors_are_not_left_open(spawn: Spawn) -> None:
    before = _descriptors()
    for _ in range(3):
        process, heard = spawn(FAKE)
        await heard.message()
        process.stop()
        await heard.end()
    assert _descriptors() == before


async def test_a_stop_command_is_used_where_there_is_one(spawn: Spawn, tmp_path: Path) -> None:
    script = tmp_path / "stop.sh"
    script.write_text('touch "$2"; kill -TERM "$1"')
    mark = tmp_path / "mark"
    process, heard = spawn(FAKE, stop_argv=("sh", str(script), "${PID}", str(mark)))
    await heard.message()
    process.stop()
    await heard.end()
    assert mark.exists()


async def test_a_stop_command_that_hangs_ends_with_its_worker(spawn: Spawn, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    hangs = f"echo $$ > {mark}.new; mv {mark}.new {mark}; sleep 600"
    process, heard = spawn(FAKE, stop_argv=("sh", "-c", hangs))
    await heard.message()
    process.stop()
    eventually(mark.exists)
    command = int(mark.read_text())
    (child,) = eventually(lambda: _children(command))
    assert alive(process.pid)
    process.kill()  # As the core orders when the model's stop_grace is over.
    await heard.end()
    eventually(lambda: not alive(command) and not alive(child))


@pytest.mark.parametrize("command", [("sh", "-c", "exit 3"), ("no-such-program",)])
async def test_a_stop_command_that_fails_is_followed_by_sigterm(
    spawn: Spawn, command: tuple[str, ...]
) -> None:
    process, heard = spawn(FAKE, stop_argv=command)
    await heard.message()
    process.stop()
    assert await heard.end() == "the worker ended with exit status 0"


async def test_a_foreign_worker_is_ready_when_it_answers(spawn: Spawn) -> None:
    process, _ = spawn(
        f"{FAKE} --port ${{PORT}} --silent --outlive-stdin",
        builtin=False,
        proxy="http://127.0.0.1:${PORT}",
    )
    async with new_session() as session:
        await asyncio.wait_for(wait_until_ready(process, session), 20)
        async with session.get(f"{process.base_url}/health") as answer:
            assert (await answer.json())["pid"] == process.pid


async def test_a_stranger_on_its_port_is_told_from_it(spawn: Spawn) -> None:
    """The worker itself never listens; this very process answers 200 on its port instead."""
    process, heard = spawn(
        "sleep 60", builtin=False, proxy="http://127.0.0.1:${PORT}", check_endpoint="/"
    )
    handler = http.server.SimpleHTTPRequestHandler
    handler.log_message = lambda *_: None  # type: ignore[method-assign]
    with http.server.HTTPServer(("127.0.0.1", process.port), handler) as stranger:
        thread = threading.Thread(target=stranger.serve_forever)
        thread.start()
        try:
            async with new_session() as session:
                with pytest.raises(PortOwnerError, match=f"pid {os.getpid()}"):
                    await asyncio.wait_for(wait_until_ready(process, session), 20)
        finally:
            stranger.shutdown()
            thread.join()
    process.condemn("a stranger holds its port")
    assert await heard.end() == "a stranger holds its port"


def test_the_guardian_ends_what_it_watches_when_its_owner_is_gone(tmp_path: Path) -> None:
    """The owner is a process of its own, killed; one group is watched, one no longer is."""
    script = tmp_path / "owner.py"
    script.write_text(
        "import logging, pathlib, subprocess, sys\n"
        "from swapd.process.orphans import Guardian\n"
        "from swapd.process.orphans import PidRegistry\n"
        "log = logging.getLogger()\n"
        f"guardian = Guardian(log, PidRegistry(pathlib.Path({str(tmp_path / 'r')!r}), log))\n"
        "pids = [subprocess.Popen(['sleep', '60'], start_new_session=True).pid for _ in '12']\n"
        "[guardian.watch(pid) for pid in pids]\n"
        "guardian.forget(pids[1])\n"
        "print(*pids, guardian.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    watched, forgotten, shell = map(int, owner.stdout.readline().split())
    try:
        owner.kill()
        eventually(lambda: not alive(watched) and not alive(shell), within=2.0)
        assert alive(forgotten)
    finally:
        os.kill(forgotten, signal.SIGKILL)
        owner.wait()
        owner.stdout.close()
        assert owner.stdin is not None
        owner.stdin.close()


async def test_where_a_worker_is_stays_here() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    async with new_session() as session:
        with pytest.raises(aiohttp.ClientError) as failed:
            await session.get(f"http://127.0.0.1:{port}/")
    assert str(port) in str(failed.value)
    assert failure_message(failed.value) == "it accepts no connections: Connection refused"
