"""Real worker processes: messages, signals, exit reasons, children, occupied ports."""

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


async def test_a_builtin_worker_reports_its_address(spawn: Spawn) -> None:
    process, listener = spawn(FAKE)
    message = await listener.message()
    assert message.ready
    assert message.slots == 4
    assert process.base_url == f"http://127.0.0.1:{message.port}"
    assert os.getsid(process.pid) == process.pid


async def test_a_builtin_worker_reports_its_devices(spawn: Spawn) -> None:
    device = '{"name":"CUDA0","total":8000,"free":5000,"held":3000,"more":0}'
    _, listener = spawn(f"{FAKE} --device {device}")
    assert (await listener.message()).devices == (DeviceReport("CUDA0", 8000, 5000, 3000),)


async def test_sigterm_ends_a_worker_with_status_0(spawn: Spawn) -> None:
    process, listener = spawn(FAKE)
    await listener.message()
    process.stop()
    assert await listener.end() == "the worker ended with exit status 0"
    assert not alive(process.pid)


async def test_a_reported_error_is_the_exit_reason(spawn: Spawn) -> None:
    _, listener = spawn(f"{FAKE} --fail no-such-tensor")
    assert (await listener.load_error()).error == "no-such-tensor"
    assert await listener.end() == "no-such-tensor"


async def test_the_exit_reason_names_the_signal_and_quotes_the_last_line(spawn: Spawn) -> None:
    process, listener = spawn(
        f"{sys.executable} -c print('some[last]words');__import__('os').abort()"
    )
    assert await listener.end() == "the worker was ended by SIGABRT: some[last]words"
    process.stop()  # Too late, without effect.


def _descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="no real-time signals here")
async def test_the_exit_reason_has_the_number_of_a_signal_without_a_name(spawn: Spawn) -> None:
    worker, listener = spawn(FAKE)
    await listener.message()
    os.kill(worker.pid, 40)
    assert await listener.end() == "the worker was ended by signal 40"


async def test_the_exit_reason_quotes_the_last_lines(spawn: Spawn) -> None:
    script = "for i in 1 2 3 4 5 6 7; do echo line-$i >&2; done; exit 9"
    _, listener = spawn("sh", argv=("sh", "-c", script), builtin=False)
    assert await listener.end() == (
        "the worker ended with exit status 9: line-3 | line-4 | line-5 | line-6 | line-7"
    )


async def test_the_exit_reason_does_not_quote_output_about_requests(
    spawn: Spawn, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"echo loading; read x < {gate}; echo a prompt; exit 9"
    process, listener = spawn("sh", argv=("sh", "-c", script), builtin=False)
    process.mark_ready()
    with gate.open("r+b", buffering=0) as both_ends:
        both_ends.write(b"on\n")
        ended = await listener.end()
    assert ended == "the worker ended with exit status 9"


async def test_the_exit_reason_after_sigkill_quotes_no_output(spawn: Spawn) -> None:
    _, listener = spawn("sh", argv=("sh", "-c", "echo not why; kill -9 $$"), builtin=False)
    assert await listener.end() == "the worker was ended by SIGKILL"


async def test_a_command_that_cannot_be_run_raises(spawn: Spawn) -> None:
    before = _descriptors()
    with pytest.raises(FileNotFoundError):
        spawn("no-such-program")
    assert _descriptors() == before


@pytest.mark.skipif(oom_kills() is None, reason="the system does not count OOM kills")
async def test_only_a_sigkill_from_outside_is_an_external_kill(spawn: Spawn) -> None:
    process, listener = spawn(FAKE)
    await listener.message()
    os.kill(process.pid, signal.SIGKILL)
    assert await listener.end() == "the worker was ended by SIGKILL"
    assert listener.killed_externally
    process, listener = spawn(FAKE)
    await listener.message()
    process.kill()
    await listener.end()
    assert listener.killed_externally is False


@pytest.mark.parametrize(
    ("number", "stopped", "killed_externally"),
    [
        (signal.SIGTERM, False, True),
        (signal.SIGHUP, False, True),
        (signal.SIGTERM, True, False),
        (signal.SIGSEGV, False, False),
        (signal.SIGABRT, False, False),
    ],
)
async def test_termination_from_outside_is_an_external_kill(
    spawn: Spawn, number: signal.Signals, stopped: bool, killed_externally: bool
) -> None:
    process, listener = spawn("sleep 600")
    if stopped:
        process.stop()
    os.kill(process.pid, number)
    await listener.end()
    assert listener.killed_externally is killed_externally


async def test_a_kill_ends_the_children_too(spawn: Spawn) -> None:
    process, listener = spawn(f"{FAKE} --child --deaf")
    await listener.message()
    (child,) = _children(process.pid)
    process.kill()
    await listener.end()
    eventually(lambda: not alive(child))


async def test_children_that_a_worker_leaves_behind_are_killed(spawn: Spawn) -> None:
    process, listener = spawn(f"{FAKE} --child")
    await listener.message()
    (child,) = _children(process.pid)
    process.stop()
    await listener.end()
    eventually(lambda: not alive(child))


def _children(pid: int) -> list[int]:
    out = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True)
    rows = [line.split() for line in out.stdout.splitlines()[1:]]
    return [int(child) for child, parent in rows if int(parent) == pid]


async def test_no_descriptor_is_left_open(spawn: Spawn) -> None:
    before = _descriptors()
    for _ in range(3):
        process, listener = spawn(FAKE)
        await listener.message()
        process.stop()
        await listener.end()
    assert _descriptors() == before


async def test_stop_runs_the_stop_command(spawn: Spawn, tmp_path: Path) -> None:
    script = tmp_path / "stop.sh"
    script.write_text('touch "$2"; kill -TERM "$1"')
    mark = tmp_path / "mark"
    process, listener = spawn(FAKE, stop_argv=("sh", str(script), "${PID}", str(mark)))
    await listener.message()
    process.stop()
    await listener.end()
    assert mark.exists()


async def test_a_stop_command_that_hangs_ends_with_its_worker(spawn: Spawn, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    hangs = f"echo $$ > {mark}.new; mv {mark}.new {mark}; sleep 600"
    process, listener = spawn(FAKE, stop_argv=("sh", "-c", hangs))
    await listener.message()
    process.stop()
    eventually(mark.exists)
    command = int(mark.read_text())
    (child,) = eventually(lambda: _children(command))
    assert alive(process.pid)
    process.kill()  # As the scheduler commands at the end of the model's stop_grace.
    await listener.end()
    eventually(lambda: not alive(command) and not alive(child))


@pytest.mark.parametrize("command", [("sh", "-c", "exit 3"), ("no-such-program",)])
async def test_a_stop_command_that_fails_is_followed_by_sigterm(
    spawn: Spawn, command: tuple[str, ...]
) -> None:
    process, listener = spawn(FAKE, stop_argv=command)
    await listener.message()
    process.stop()
    assert await listener.end() == "the worker ended with exit status 0"


async def test_an_external_worker_is_ready_when_its_probe_succeeds(spawn: Spawn) -> None:
    process, _ = spawn(
        f"{FAKE} --port ${{PORT}} --silent --outlive-stdin",
        builtin=False,
        proxy="http://127.0.0.1:${PORT}",
    )
    async with new_session() as session:
        await asyncio.wait_for(wait_until_ready(process, session), 20)
        async with session.get(f"{process.base_url}/health") as answer:
            assert (await answer.json())["pid"] == process.pid


async def test_another_process_on_the_port_is_not_taken_for_the_worker(spawn: Spawn) -> None:
    """Answer 200 on the port from the test process; the worker never listens."""
    process, listener = spawn(
        "sleep 60", builtin=False, proxy="http://127.0.0.1:${PORT}", check_endpoint="/"
    )
    handler = http.server.SimpleHTTPRequestHandler
    handler.log_message = lambda *_: None  # type: ignore[method-assign]
    with http.server.HTTPServer(("127.0.0.1", process.port), handler) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            async with new_session() as session:
                with pytest.raises(PortOwnerError, match=f"pid {os.getpid()}"):
                    await asyncio.wait_for(wait_until_ready(process, session), 20)
        finally:
            other.shutdown()
            thread.join()
    process.kill_for("another process holds its port")
    assert await listener.end() == "another process holds its port"


def test_the_guardian_kills_its_process_groups_when_swapd_is_gone(tmp_path: Path) -> None:
    """Kill a process that owns a guardian with one watched and one forgotten group."""
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


async def test_failure_messages_hide_the_address_of_the_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    async with new_session() as session:
        with pytest.raises(aiohttp.ClientError) as failed:
            await session.get(f"http://127.0.0.1:{port}/")
    assert str(port) in str(failed.value)
    assert failure_message(failed.value) == "it accepts no connections: Connection refused"
