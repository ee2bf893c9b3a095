"""Heartbeats: sent while the worker makes progress, also within one long computation."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.daemon import eventually
from tests.workers.conftest import Start
from tests.workers.engine.test_engine import Bench
from tests.workers.process import WorkerProcess
from tests.workers.random_gguf import write_random_gguf
from workers.engine.engine import Task
from workers.heartbeat import HeartbeatSender
from workers.lifeline import Lifeline
from workers.llama.context import Batch, Context, ContextOptions
from workers.llama.model import LlamaLog, Model
from workers.service import in_thread

ENDLESS = {"prompt": "a", "max_tokens": 30000, "ignore_eos": True}


def test_progress_is_seen_within_one_computation(tmp_path: Path) -> None:
    path = write_random_gguf(tmp_path / "m.gguf", width=256, layers=4, context=2048)
    log = LlamaLog(silent=True)
    model = Model(str(path), gpu_layers=0, mmap=True, mlock=False, log=log)
    context = Context(model, ContextOptions(2048, 512, 512, 1, 1, 1), log)
    batch = Batch(512)
    batch.add_run([65] * 512, 0, 0)
    model.progress.seen()
    computing = threading.Thread(target=context.decode, args=(batch,))
    computing.start()
    seen = 0
    while computing.is_alive():
        seen += model.progress.seen()
    assert seen > 10
    model.progress.seen()
    assert not model.progress.seen()
    context.free()


def sender(bench: Bench) -> HeartbeatSender:
    return HeartbeatSender(Lifeline(None), bench.engine, asyncio.get_running_loop())


@dataclass
class Watched:
    """An engine that computes a long request, and its heartbeat."""

    bench: Bench
    heartbeat: HeartbeatSender

    async def look(self) -> bool:
        """Return the result of one heartbeat check, while the event loop runs."""
        return await in_thread(self.heartbeat.check)

    async def until_between_steps(self) -> None:
        """Wait for the end of the engine's present step."""
        reached = threading.Event()
        self.bench.engine.run_between_steps(Task(reached.set, reached.set))
        await in_thread(reached.wait)


@pytest.fixture
async def watched(tiny_gguf: Path) -> AsyncIterator[Watched]:
    """An engine in the middle of a request; see Watched."""
    bench = Bench(tiny_gguf, 2, 16384)
    found = Watched(bench, sender(bench))
    sequence, stream = bench.begin([65], limit=16000)
    await stream.begun.wait()
    yield found
    bench.engine.cancel(sequence)
    await found.until_between_steps()


async def test_progress_of_both_threads_is_a_heartbeat(watched: Watched) -> None:
    for _ in range(3):
        await watched.until_between_steps()
        assert await watched.look()


async def test_a_hanging_engine_thread_stops_the_heartbeats(watched: Watched) -> None:
    entered, gate = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        gate.wait()

    watched.bench.engine.run_between_steps(Task(hang, hang))
    await in_thread(entered.wait)
    await watched.look()
    assert [await watched.look() for _ in range(3)] == [False] * 3
    gate.set()
    while not await watched.look():
        pass  # until it has made a step


async def test_a_hanging_event_loop_stops_the_heartbeats(watched: Watched) -> None:
    await watched.look()
    await watched.until_between_steps()
    watched.heartbeat.check()
    assert [watched.heartbeat.check() for _ in range(3)] == [False] * 3
    await watched.until_between_steps()
    assert await watched.look()


async def test_an_idle_engine_does_not_stop_the_heartbeats(tiny_gguf: Path) -> None:
    """Check without computation: a request may be tokenized, or wait for its client."""
    bench = Bench(tiny_gguf, 2, 1024)
    idle = Watched(bench, sender(bench))
    await idle.until_between_steps()
    await idle.look()
    while not bench.engine.idle:
        await idle.look()
    assert [await idle.look() for _ in range(3)] == [True] * 3


SEIZE, INTERRUPT, CONT, DETACH = 0x4206, 0x4207, 7, 17
WALL = 0x40000000


def used(pid: int, thread: int) -> int:
    """Return the processor time that a thread has used, in ticks."""
    fields = Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11])


def busiest(pid: int) -> int:
    """Return the thread with the most processor time: the engine's."""
    threads = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    return max(threads, key=lambda thread: used(pid, thread))


def trace(what: int, thread: int) -> None:
    """Make a ptrace request; all have to come from the same thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(what, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.mark.skipif(sys.platform != "linux", reason="one thread is stopped with Linux's ptrace")
def test_a_worker_with_a_stopped_engine_thread_sends_no_heartbeats(
    start: Start, tmp_path: Path
) -> None:
    path = write_random_gguf(tmp_path / "m.gguf", width=512, layers=8, context=32768)
    worker = start(path, "--ctx-size", "32768")
    with worker.stream("/v1/completions", ENDLESS) as chunks:
        next(chunks)
        assert worker.line()["beat"] > 0
        thread = busiest(worker.process.pid)
        try:
            trace(SEIZE, thread)
        except PermissionError:
            pytest.skip("children can't be traced here")
        stop_outside_python(worker, thread)
        if select.select([worker.lines], [], [], 1.5)[0]:
            worker.line()  # sent before the thread was stopped
        assert not select.select([worker.lines], [], [], 2.5)[0], "a heartbeat without progress"
        assert worker.ask("/health")[0] == 200
        trace(DETACH, thread)
        assert worker.line()["beat"] > 0
        next(chunks)


def stop_outside_python(worker: WorkerProcess, thread: int) -> None:
    """Stop the thread at a point without the GIL, so that the event loop keeps running."""
    while True:
        trace(INTERRUPT, thread)
        os.waitpid(thread, WALL)
        connection = worker.connect()
        connection.timeout = 1.0
        try:
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200
        except TimeoutError:
            resume(worker.process.pid, thread)
        else:
            return
        finally:
            connection.close()


def resume(pid: int, thread: int) -> None:
    """Continue a thread until it has run: else it could be stopped at the same point again."""
    before = used(pid, thread)
    trace(CONT, thread)
    eventually(lambda: used(pid, thread) > before, within=30)
