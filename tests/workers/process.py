"""Worker processes for tests, with a simple HTTP client."""

from __future__ import annotations

import http.client
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import psutil

from workers.protocol import READY_FD

ROOT = Path(__file__).parents[2]
ONE_THREAD = ("--threads", "1")
"""Flags for one thread: llama.cpp's threads spin at barriers, and two take ten times as long if
other tests run at the same time."""
TIMEOUT = 30.0
"""Seconds until a process that does not start is a failure."""


class WorkerProcess:
    """A process of `python -m workers.serve` with a ready descriptor and a pipe for stdin."""

    def __init__(self, model: Path, *flags: str) -> None:
        reader, writer = os.pipe()
        self.lines: TextIO = os.fdopen(reader, encoding="utf-8")
        command = [sys.executable, "-W", "error", "-m", "workers.serve", "--model", str(model)]
        self.process = subprocess.Popen(
            [*command, "--port", "0", *ONE_THREAD, *flags],
            cwd=ROOT,
            env={**os.environ, READY_FD: str(writer)},
            pass_fds=[writer],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(writer)
        self.first = self.line()
        self.port = int(self.first.get("port", 0))

    def line(self) -> dict[str, Any]:
        """Return the next line of the ready descriptor; {} if the worker closed it."""
        ready, _, _ = select.select([self.lines], [], [], TIMEOUT)
        assert ready, "the worker wrote no line"
        text = self.lines.readline()
        line: dict[str, Any] = json.loads(text) if text else {}
        return line

    def connect(self) -> http.client.HTTPConnection:
        """Return a new connection to the worker."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)

    def ask(self, path: str, body: object = None) -> tuple[int, Any]:
        """Send a GET, or a POST of `body` (bytes unchanged); return status and decoded JSON."""
        connection = self.connect()
        try:
            if body is None:
                connection.request("GET", path)
            else:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                connection.request("POST", path, data)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def post(self, path: str, body: object) -> Any:
        """Send a POST that must succeed; return the decoded response."""
        status, answer = self.ask(path, body)
        assert status == 200, answer
        return answer

    def text(self, **body: object) -> str:
        """Return the text that /v1/completions generates."""
        text: str = self.post("/v1/completions", body)["choices"][0]["text"]
        return text

    def metric(self, name: str) -> float:
        """Return one value of /metrics."""
        connection = self.connect()
        try:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        finally:
            connection.close()
        (value,) = [line.split()[1] for line in lines if line.startswith(f"llamacpp:{name} ")]
        return float(value)

    @contextmanager
    def stream(self, path: str, body: dict[str, object]) -> Iterator[Iterator[dict[str, Any]]]:
        """Stream a request; yield an iterator of its events. Leaving the block disconnects."""
        connection = self.connect()
        try:
            connection.request("POST", path, json.dumps({**body, "stream": True}))
            response = connection.getresponse()
            assert response.status == 200, response.read()
            with response:
                yield events(response)
        finally:
            connection.close()

    def grows_by(self, ask: Callable[[], object]) -> int:
        """Return the peak growth of the process in bytes while `ask` runs."""
        process = psutil.Process(self.process.pid)
        before = most = process.memory_info().rss
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask)
            while not answer.done():
                most = max(most, process.memory_info().rss)
            answer.result()
        return most - before

    def kill(self) -> None:
        """Kill the process, and close its pipes."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stderr, self.lines):
            if pipe is not None:
                pipe.close()

    def close(self) -> tuple[int, str]:
        """Wait for the process to end; return its exit status and standard error."""
        self.process.wait(TIMEOUT)  # first, because `communicate` closes its standard input
        _, errors = self.process.communicate()
        self.lines.close()
        return self.process.returncode, errors


def events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield the JSON of each `data:` line until [DONE], which must be the last."""
    for line in response:
        if line == b"data: [DONE]\n":
            assert response.read() == b"\n"
            return
        if line != b"\n":
            assert line.startswith(b"data: "), line
            yield json.loads(line.removeprefix(b"data: "))
    raise AssertionError("the stream ended without [DONE]")
