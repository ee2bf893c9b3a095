"""Measured processes: swapd, the built-in worker alone, the native server, an upstream.

All listen on loopback only; each is ended by the object that started it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from bench.common import give_up

WITHIN = 20.0
PEER = Path(__file__).with_name("peer_native.py")
MISSING = (
    "the peer is left out: xllamacpp is not there"
    " (pip install 'swapd[bench]', or --peer-python a Python that has it)"
)


S = TypeVar("S", bound="Started")


def free_port() -> int:
    """Return a port that is free at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Started:
    """Process that prints one JSON line when it is ready, `word`; a context manager."""

    def __init__(
        self,
        argv: list[str],
        environ: Mapping[str, str],
        folder: Path | None,
        *,
        ready_option: str = "",
    ) -> None:
        """Wait for the line on the descriptor `{fd}` of `ready_option`, or on stdout.

        `ready_option` is either an argument pair (`--ready-fd={fd}`) or a variable (`NAME={fd}`).
        """
        read_end, write_end = os.pipe()
        given = ready_option.format(fd=write_end)
        env = {**os.environ, **environ}
        if given.startswith("--"):
            argv = [*argv, *given.split("=")]
        elif given:
            name, _, value = given.partition("=")
            env[name] = value
        self.process = subprocess.Popen(
            argv,
            env=env,
            cwd=folder,
            pass_fds=(write_end,),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if given else write_end,
            stderr=subprocess.DEVNULL,
        )
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            line = pipe.readline()
        self.word: dict[str, Any] = msgspec.json.decode(line or b"{}")
        self.pid = self.process.pid

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop the process and wait until it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class Daemon(Started):
    """swapd with a data directory of its own."""

    def __init__(self, home: Path, config: Mapping[str, Any]) -> None:
        self.home = home
        self.port = free_port()
        # JSON is YAML too.
        (home / "config.yaml").write_bytes(msgspec.json.encode(config))
        super().__init__(
            [sys.executable, "-m", "swapd.daemon", "--port", str(self.port)],
            {"SWAPD_HOME": str(home), "SWAPD_HOST": ""},
            home,
            ready_option="--ready-fd={fd}",
        )
        if "endpoint" not in self.word:
            give_up(f"swapd does not start: {self.word}")
        self.url = f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        """Return the log so far."""
        return (self.home / ".swapd" / "logs" / "swapd.log").read_text()


class Worker(Started):
    """Built-in worker without swapd."""

    def __init__(self, model: Path, *, slots: int, context: int, threads: int) -> None:
        words = {
            "--model": model,
            "--port": 0,
            "--parallel": slots,
            "--ctx-size": context,
            "--threads": threads,
        }
        flags = [str(part) for pair in words.items() for part in pair]
        argv = [sys.executable, "-m", "workers.serve", *flags]
        super().__init__(argv, {}, None, ready_option="SWAPD_READY_FD={fd}")
        if not self.word.get("ready"):
            give_up(f"the worker does not come up: {self.word}")
        self.url = f"http://{self.word['host']}:{self.word['port']}"


class Native(Started):
    """llama.cpp's own server. Raises LookupError when its package is missing."""

    def __init__(
        self,
        python: str,
        model: Path,
        *,
        slots: int,
        context: int,
        threads: int,
        warmup: bool = False,
    ) -> None:
        wanted = {
            "model": str(model),
            "slots": slots,
            "context": context,
            "threads": threads,
            "warmup": warmup,
        }
        super().__init__([python, str(PEER), msgspec.json.encode(wanted).decode()], {}, None)
        if "missing" in self.word:
            self.stop()
            raise LookupError(MISSING)
        if "url" not in self.word:
            self.stop()
            give_up(f"the native server does not come up with {model.name}")
        self.url = str(self.word["url"])

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill the process, the fastest way to end it."""
        super().stop(number)


def has_peer(python: str) -> bool:
    """Return True if this Python has the peer; print a note otherwise."""
    found = subprocess.run([python, "-c", "import xllamacpp"], capture_output=True, check=False)
    if found.returncode != 0:
        print(MISSING)
    return found.returncode == 0
