"""A user of the command line."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect  # type: ignore[import-untyped]
import psutil

from swapd.process.ports import free_port
from tests.daemon import ROOT, alive, eventually


class User:
    """A user with an empty data directory and an empty `HOME`: only the demo models."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        (home / "user").mkdir()
        stored = ("SWAPD_", "LLAMA_", "MODEL", "HF_", "OLLAMA_", "XDG_", "DEFAULT_")
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(stored)},
            "SWAPD_HOME": str(home / "swapd"),
            "SWAPD_PORT": str(self.port),
            "HOME": str(home / "user"),
            "MODELS_DIR": str(home / "models"),
            "COLUMNS": "80",
        }
        (home / "models").mkdir()

    @property
    def config(self) -> Path:
        return self.home / "swapd/config.yaml"

    @property
    def custom(self) -> Path:
        return self.home / "swapd/custom_models.yaml"

    def types(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run `./model` with these arguments to its end, by default without input."""
        if not more.keys() & {"input", "stdin"}:
            more["stdin"] = subprocess.DEVNULL
        return subprocess.run(
            [str(ROOT / "model"), *words],
            cwd=self.home,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **more,
        )

    def says(self, *words: str, **more: Any) -> str:
        """Return the output of a command, which must succeed."""
        done = self.types(*words, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def takes(self, *words: str) -> float:
        """Return the CPU seconds of a command, the least of five runs.

        On an idle machine that is its duration, since it waits for the processor alone.
        """
        spent = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            self.types(*words)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        return min(spent)

    def fails(self, *words: str, status: int = 1, **more: Any) -> str:
        """Return the error message of a command, which must fail."""
        done = self.types(*words, **more)
        assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stderr

    @contextmanager
    def at_terminal(self, *words: str) -> Iterator[Any]:
        """Run a command at a pseudo-terminal."""
        child = pexpect.spawn(
            str(ROOT / "model"),
            list(words),
            cwd=str(self.home),
            env={**self.environ, "TERM": "xterm", "COLUMNS": "120"},
            encoding="utf-8",
            timeout=20,
            dimensions=(30, 120),
        )
        child.delaybeforesend = None
        try:
            yield child
        finally:
            child.close(force=True)

    def files(self) -> dict[str, bytes]:
        """Return every file that users edit, with its content."""
        folder = self.home / "swapd"
        return {p.name: p.read_bytes() for p in folder.glob("*") if p.is_file()}

    def processes(self) -> list[int]:
        """Return the pids of live processes with this data directory in their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                command = process.environ().get("SWAPD_HOME") == self.environ["SWAPD_HOME"]
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if command and alive(process.pid):
                found.append(process.pid)
        return found

    def leaves(self) -> None:
        """Stop swapd; no process may be left."""
        if self.processes():
            self.types("stop", "--now")
        assert eventually(lambda: not self.processes())
