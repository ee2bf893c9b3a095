"""How the command line speaks: sentences, tables, sizes, and a sign of life while it waits."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from swapd.config.units import show_size

SPINNER_DELAY = 1.0
"""Seconds after which somebody who waits is told what for."""
WIDEST = 60
"""Characters in a column of a table."""
NOT_RUNNING = 3
"""Exit status of what needs a running swapd when there is none."""


class FailedError(Exception):
    """A command can't do what it was told: one sentence, and the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def command() -> str:
    """How this program is called by whoever reads the message."""
    return os.environ.get("SWAPD_COMMAND", "swapd")


def print_error(message: str) -> None:
    """A sentence on standard error."""
    print(f"swapd: {message}", file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """For programs: one line."""
    try:
        text = msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        # The name of a file need not be text.
        told = json.dumps(msgspec.to_builtins(value, enc_hook=str), ensure_ascii=False)
        text = told.encode(errors="replace").decode()
    print(text)


def sanitize(text: object) -> str:
    """The text on one line, without what would steer a terminal: file names can hold anything."""
    return "".join(c if c.isprintable() else "�" for c in str(text))


def show_bytes(count: int) -> str:
    """A size; empty for none."""
    return show_size(count) if count > 0 else ""


def show_time(seconds: float) -> str:
    """A duration in the two units that matter: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns as wide as their widest entry; what is headed by `>` goes to the right.

    Nothing is cut off: a line that a terminal wraps still can be copied. What is longer than a
    reasonable column pushes the rest of its own line alone.
    """
    right = [title.startswith(">") for title in head]
    cells = [[title.removeprefix(">") for title in head], *rows]
    widths = [
        max(len(row[i]) for row in cells if len(row[i]) <= WIDEST or row is cells[0])
        for i in range(len(head))
    ]
    return [
        "  ".join(
            text.rjust(width) if flush else text.ljust(width)
            for text, width, flush in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]


def confirm(question: str) -> bool:
    """Ask somebody at the terminal; whether the answer is yes. Nobody there means no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """While the body takes longer than a moment, somebody at a terminal sees that it goes on."""
    if not sys.stderr.isatty():
        yield
        return
    over = threading.Event()
    sign = threading.Thread(target=_spin, args=(what, over), name="sign of life", daemon=True)
    sign.start()
    try:
        yield
    finally:
        over.set()
        sign.join()


def _spin(what: str, over: threading.Event) -> None:
    if over.wait(SPINNER_DELAY):
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        over.wait()
