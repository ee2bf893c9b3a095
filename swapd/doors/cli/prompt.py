"""What somebody types at a prompt: lines with a history, and messages of several lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

KEPT = 1000
"""Lines of history."""
FENCE = '"""'


@contextmanager
def history(path: Path) -> Iterator[None]:
    """Let the arrow keys bring back what was typed before, also in earlier chats."""
    try:
        import readline
    except ImportError:
        # A Python without it has no arrow keys, and chats all the same.
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT, 0o600))
    readline.set_history_length(KEPT)
    readline.read_history_file(path)
    try:
        yield
    finally:
        readline.write_history_file(path)


def read_message(line: Callable[[str], str] = input) -> str:
    '''One message: a line; several between `"""`; or several where each but the last ends in `\\`.

    Raises EOFError at the end of the input.
    '''
    first = line(">>> ")
    if first.lstrip().startswith(FENCE):
        return _fenced(first.lstrip().removeprefix(FENCE), line)
    lines = [first]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(line("... "))
    return "\n".join(lines).strip()


def _fenced(first: str, line: Callable[[str], str]) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(FENCE):
        lines.append(line("... "))
    lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
    return "\n".join(lines).strip("\n")
