"""The worker contract: readiness, heartbeats, and the ways to end a worker."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.workers.conftest import Start
from tests.workers.process import ROOT, TIMEOUT, WorkerProcess
from workers.llama.devices import CPU, Device, devices, memory_held

ENDLESS = {"prompt": "go", "ignore_eos": True, "max_tokens": 20_000, "temperature": 1}


def test_the_ready_message_has_address_and_figures(start: Start, tiny_gguf: Path) -> None:
    worker = start(tiny_gguf, "-np", "3", "-c", "3000")
    message = worker.first
    assert message["ready"] is True
    assert (message["host"], message["pid"]) == ("127.0.0.1", worker.process.pid)
    assert (message["model"], message["slots"]) == (str(tiny_gguf), 3)
    assert (message["context"], message["cells"]) == (3072, 3072), "llama.cpp rounds to 256"
    assert 0 < message["load_seconds"] < TIMEOUT
    assert [device["name"] for device in message["devices"]] == [one.name for one in devices()]
    assert worker.ask("/health") == (200, {"status": "ok"})


def test_devices_are_reported_with_their_memory() -> None:
    (cpu,) = devices([CPU])
    assert cpu.name == "CPU"
    assert cpu.total == pytest.approx(psutil.virtual_memory().total, rel=0.01)
    assert 0 < cpu.free <= cpu.total


def test_memory_held_is_the_decrease_of_free_memory() -> None:
    before = [Device("CUDA0", 8000, 7500), Device("CUDA1", 8000, 8000)]
    after = [Device("CUDA0", 8000, 4500), Device("CUDA1", 8000, 8000), Device("CUDA2", 8000, 100)]
    reported = [(device.name, device.free, device.held) for device in memory_held(before, after)]
    # The use of a device that was not listed before is unknown.
    assert reported == [("CUDA0", 4500, 3000), ("CUDA1", 8000, 0), ("CUDA2", 100, 0)]


def test_heartbeats_count_steps(tiny: WorkerProcess) -> None:
    with tiny.stream("/v1/completions", ENDLESS) as chunks:
        next(chunks)
        first = tiny.line()["beat"]
        while (
            tiny.line()["beat"] <= first
        ):  # a heartbeat within one long computation counts no step
            pass


def test_end_of_input_ends_the_worker_in_the_middle_of_a_stream(
    start: Start, tiny_gguf: Path
) -> None:
    worker = start(tiny_gguf, "-c", "32768")
    with worker.stream("/v1/completions", ENDLESS) as chunks:
        next(chunks)
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        worker.process.stdin = None
        status, _ = worker.close()
    assert status == 0


def test_sigterm_completes_the_stream_and_accepts_no_more(start: Start, tiny_gguf: Path) -> None:
    worker = start(tiny_gguf, "-c", "32768")
    body = {**ENDLESS, "max_tokens": 3000, "stream_options": {"include_usage": True}}
    connection = worker.connect()
    connection.request("GET", "/health")
    assert connection.getresponse().read()
    with worker.stream("/v1/completions", body) as chunks:
        next(chunks)
        worker.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionError):
            while True:
                worker.ask("/health")
        last = list(chunks)[-1]
    connection.close()
    assert last["usage"]["completion_tokens"] == 3000
    assert worker.close()[0] == 0


@pytest.mark.parametrize(
    ("signals", "status"), [([signal.SIGTERM] * 2, 128 + 15), ([signal.SIGINT], 128 + 2)]
)
def test_a_second_sigterm_or_an_interrupt_ends_the_worker_at_once(
    start: Start, tiny_gguf: Path, signals: list[signal.Signals], status: int
) -> None:
    worker = start(tiny_gguf, "-c", "32768")
    with worker.stream("/v1/completions", ENDLESS) as chunks:
        next(chunks)
        worker.process.send_signal(signals[0])
        for more in signals[1:]:
            with pytest.raises(ConnectionError):
                while True:
                    worker.ask("/health")
            worker.process.send_signal(more)
        assert worker.close()[0] == status


def test_a_worker_without_a_supervisor_outlives_its_input(tiny_gguf: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "workers.serve",
        "--model",
        str(tiny_gguf),
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        while True:
            assert process.poll() is None
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except ConnectionRefusedError:
                continue
    finally:
        process.terminate()
        assert process.wait(TIMEOUT) == 0


@pytest.fixture
def loading(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A worker that loads for ever, and its port: its model is a FIFO without a writer."""
    os.mkfifo(tmp_path / "endless.gguf")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "workers.serve", "--port", str(port), "--model"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "endless.gguf")], cwd=ROOT, stdin=subprocess.PIPE
    )
    while True:
        assert process.poll() is None
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except ConnectionRefusedError:
            continue
    yield process, port
    process.kill()
    process.communicate()


def test_a_loading_worker_answers_503(loading: tuple[subprocess.Popen[bytes], int]) -> None:
    for path in ("/health", "/v1/models"):
        connection = http.client.HTTPConnection("127.0.0.1", loading[1], timeout=TIMEOUT)
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 503
        assert json.loads(response.read())["error"] == {
            "code": 503,
            "message": "Loading model",
            "type": "unavailable_error",
        }
        connection.close()


def test_sigterm_ends_a_loading_worker(loading: tuple[subprocess.Popen[bytes], int]) -> None:
    loading[0].terminate()
    assert loading[0].wait(TIMEOUT) == 0


def test_end_of_input_ends_a_loading_worker(
    loading: tuple[subprocess.Popen[bytes], int],
) -> None:
    assert loading[0].stdin is not None
    loading[0].stdin.close()
    loading[0].stdin = None
    assert loading[0].wait(TIMEOUT) == 0


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (100_000, "data is not within the file bounds, model is corrupted or incomplete"),
        (100, "failed to read key-value pairs"),
        (-1, "No such file or directory"),
    ],
)
def test_a_model_that_does_not_load_is_reported_with_llama_cpps_reason(
    start: Start, tiny_gguf: Path, tmp_path: Path, size: int, reason: str
) -> None:
    cut = tmp_path / "cut.gguf"
    if size >= 0:
        cut.write_bytes(tiny_gguf.read_bytes()[:size])
    worker = start(cut)
    status, errors = worker.close()
    assert set(worker.first) == {"error"}
    assert reason in worker.first["error"]
    assert "\n" not in worker.first["error"]
    assert reason in errors
    assert status == 1


def test_a_port_in_use_is_reported(start: Start, tiny_gguf: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        worker = start(tiny_gguf, "--port", str(taken.getsockname()[1]))
        assert "already in use" in worker.first["error"]
        assert worker.close()[0] == 1


def test_a_closed_ready_descriptor_does_not_stop_the_worker(start: Start, tiny_gguf: Path) -> None:
    worker = start(tiny_gguf)
    worker.lines.close()
    body = {"prompt": "a", "max_tokens": 5, "ignore_eos": True}
    assert worker.post("/v1/completions", body)["usage"]["completion_tokens"] == 5


def test_an_unknown_flag_is_reported_with_the_nearest_one() -> None:
    command = [sys.executable, "-m", "workers.serve", "--model", "x.gguf", "--ctx-sise", "5"]
    ended = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == "error: unknown flag --ctx-sise; did you mean --ctx-size?\n"
    assert os.linesep.join(ended.stdout.splitlines()) == ""
