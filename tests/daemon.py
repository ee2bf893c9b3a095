"""A real swapd for tests, with a data directory and a port of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import psutil

from swapd.process.ports import free_port
from swapd.system.aio import now

ROOT = Path(__file__).resolve().parent.parent
FAKE = f"{sys.executable} -m tests.fake_worker"
T = TypeVar("T")


def eventually(look: Callable[[], T], within: float = 10.0) -> T:
    """Poll `look` and return its first truthy value; fail after `within` seconds."""
    end = now() + within
    pause = threading.Event()
    while not (value := look()):
        assert now() < end, f"not within {within} s: {look}"
        pause.wait(0.01)
    return value


def alive(pid: int) -> bool:
    """Return True if the process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Swapd:
    """Daemon of a test: `with Swapd(home, config) as swapd:`; its processes end with the block."""

    def __init__(self, home: Path, config: str, **environ: str) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = home / "config.yaml"
        self.config.write_text(config)
        self.environ = {**os.environ, "SWAPD_HOME": str(home), "SWAPD_HOST": "", **environ}
        self._seen: set[int] = set()
        self.wrapper: tuple[str, ...] = ()
        """Command in front of the daemon's."""

    def __enter__(self) -> Swapd:
        read_end, write_end = os.pipe()
        self.output = (self.home / "output").open("w+b")
        self.process = subprocess.Popen(
            [
                *self.wrapper,
                *(sys.executable, "-m", "swapd.daemon"),
                *("--port", str(self.port), "--ready-fd", str(write_end)),
            ],
            env=self.environ,
            pass_fds=(write_end,),
            stdout=self.output,
            stderr=self.output,
        )
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            line = pipe.readline()
        assert b"endpoint" in line, (self.home / "output").read_text()
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.process.poll() is None:
                # It may be shutting down already; its workers were recorded before.
                with contextlib.suppress(httpx.HTTPError):
                    self.running()
        finally:
            self.http.close()
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGQUIT)
            self.process.wait(timeout=20)
            self.output.close()
        eventually(lambda: not any(alive(pid) for pid in self._seen))

    def running(self) -> list[dict[str, Any]]:
        """Return the workers in `/running`."""
        workers: list[dict[str, Any]] = self.http.get("/running").json()["running"]
        self._seen |= {w["pid"] for w in workers}
        return workers

    def pids(self) -> set[int]:
        """Return the pids of all workers."""
        return {w["pid"] for w in self.running()}

    def worker(self, model: str) -> dict[str, Any]:
        """Return the only worker of a model."""
        (worker,) = [w for w in self.running() if w["model"] == model]
        return worker

    def states(self) -> dict[str, str]:
        """State by model."""
        return {w["model"]: w["state"] for w in self.running()}

    def ask(self, model: str, **fields: Any) -> httpx.Response:
        """Send a chat request, greedy and short unless `fields` change that."""
        return self.http.post("/v1/chat/completions", json=chat(model, **fields))

    def log(self) -> str:
        """Return swapd's log so far."""
        return (self.home / ".swapd/logs/swapd.log").read_text()

    def until(self, look: Callable[[dict[str, str]], object], within: float = 10.0) -> None:
        """Wait until `look` is true for the states of the workers."""
        eventually(lambda: look(self.states()), within)


def chat(model: str, **fields: Any) -> dict[str, Any]:
    """Return the body of a chat request."""
    messages = [{"role": "user", "content": "Who goes there?"}]
    return {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0, **fields}


def answer_text(response: httpx.Response) -> str:
    """Return the text of a chat response."""
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Return the error of a rejection, after a check of its format."""
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() >= {"message", "type", "param", "code"}
    assert "Traceback" not in response.text, response.text
    error: dict[str, Any] = body["error"]
    return error


def config(models: dict[str, Any], **top: Any) -> str:
    """Return a configuration as text; JSON is YAML too."""
    return msgspec.json.encode({**top, "models": models}).decode()
