"""A mark of the files that a command names, another one when one of them is replaced or edited."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from swapd.gguf.llama_flags import flag_value, parse_llama_flags, speaks_llama_flags
from swapd.gguf.reader import split_parts


def file_stamp(argv: tuple[str, ...], own: bool, beside: Path) -> str:
    """The mark of the files that a worker with this command reads at its start.

    Empty when there are none, or when one is not there: what is gone replaces nothing. Relative
    paths are meant from `beside`.
    """
    named = _files(argv, own)
    seen = [_look(beside / file) for file in named]
    if not named or None in seen:
        return ""
    return hashlib.sha256(repr((named, seen)).encode()).hexdigest()[:16]


def _files(argv: tuple[str, ...], own: bool) -> list[str]:
    llama = speaks_llama_flags(argv, own)
    model = flag_value(argv, "--model", *(("-m",) if llama else ()))
    found = list(split_parts(model)) if model else []
    if llama:
        terms = parse_llama_flags(argv, own)
        template = flag_value(argv, "--chat-template-file")
        # Of a list of adapters the whole text is among them, since it may be one file's name.
        found += [file for file in terms.besides if "," not in file]
        found += [file for file in (terms.draft, template) if file]
    return found


def _look(path: Path) -> tuple[int, int, int] | None:
    """A file's size, time of change and number; None for what is no file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino
