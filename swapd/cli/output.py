"""Output of the command line: messages, tables, sizes, questions and a spinner."""

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
"""Seconds until a command at a terminal shows what it waits for."""
MAX_WIDTH = 60
"""Characters in a column of a table."""
NOT_RUNNING = 3
"""Exit status of a command that needs a running swapd when there is none."""


class FailedError(Exception):
    """A failed command: one sentence, and the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def command() -> str:
    """Return the name by which the user calls this program."""
    return os.environ.get("SWAPD_COMMAND", "swapd")


def print_error(message: str) -> None:
    """Print a sentence on standard error."""
    print(f"swapd: {message}", file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """Print one line of JSON."""
    try:
        text = msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        # A file's name need not be valid text.
        plain = json.dumps(msgspec.to_builtins(value, enc_hook=str), ensure_ascii=False)
        text = plain.encode(errors="replace").decode()
    print(text)


def sanitize(text: object) -> str:
    """Return the text as one line without control characters: file names can hold anything."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(text))


def require_one_line(text: str) -> str:
    """Return the text if a crontab or unit can hold it, where a line break would add a line.

    Raises FailedError.
    """
    if any(not char.isprintable() for char in text):
        raise FailedError(
            f"{sanitize(text)} has a line break or another control character in it,"
            " which a crontab and a service's unit cannot hold"
        )
    return text


def show_bytes(count: int) -> str:
    """Format a size; empty for 0."""
    return show_size(count) if count > 0 else ""


def show_time(seconds: float) -> str:
    """Format a duration in its two largest units: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Format lines with columns as wide as their widest cell; `>` in the head aligns right.

    Nothing is cut off: a line that a terminal wraps can still be copied. A cell wider than
    MAX_WIDTH does not widen its column; it shifts the rest of its own line alone.
    """
    right = [title.startswith(">") for title in head]
    cells = [[title.removeprefix(">") for title in head], *rows]
    widths = [
        max(len(row[i]) for row in cells if len(row[i]) <= MAX_WIDTH or row is cells[0])
        for i in range(len(head))
    ]
    return [
        "  ".join(
            text.rjust(width) if flush else text.ljust(width)
            for text, width, flush in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]


def is_interactive() -> bool:
    """Return True if a question can be asked at a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> bool:
    """Ask at the terminal and return True for a yes; without a terminal, return False."""
    if not is_interactive():
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def waiting(message: str) -> Iterator[None]:
    """Show a spinner at a terminal while the body takes longer than SPINNER_DELAY."""
    if not sys.stderr.isatty():
        yield
        return
    over = threading.Event()
    spinner = threading.Thread(target=_spin, args=(message, over), name="spinner", daemon=True)
    spinner.start()
    try:
        yield
    finally:
        over.set()
        spinner.join()


def _spin(message: str, over: threading.Event) -> None:
    if over.wait(SPINNER_DELAY):
        return
    from rich.console import Console

    with Console(stderr=True).status(message):
        over.wait()
