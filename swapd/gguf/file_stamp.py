"""Fingerprint of the files that a command names; it changes when a file is replaced or edited."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from swapd.gguf.llama_flags import flag_value, parse_llama_flags, speaks_llama_flags
from swapd.gguf.reader import split_parts


def file_stamp(argv: tuple[str, ...], builtin: bool, folder: Path) -> str:
    """Return the fingerprint of the files that a worker with this command reads at its start.

    It is empty when the command names no file, or when one of the files does not exist: a missing
    file is no reason to replace a running worker. Relative paths are resolved against `folder`.
    """
    names = _files(argv, builtin)
    states = [_file_state(folder / name) for name in names]
    if not names or None in states:
        return ""
    return hashlib.sha256(repr((names, states)).encode()).hexdigest()[:16]


def _files(argv: tuple[str, ...], builtin: bool) -> list[str]:
    llama = speaks_llama_flags(argv, builtin)
    model = flag_value(argv, "--model", *(("-m",) if llama else ()))
    files = list(split_parts(model)) if model else []
    if llama:
        flags = parse_llama_flags(argv, builtin)
        template = flag_value(argv, "--chat-template-file")
        # The unsplit text of a list of adapters is among the extra files, since it may be the
        # name of a single file; a name with a comma is therefore not counted here.
        files += [file for file in flags.extra_files if "," not in file]
        files += [file for file in (flags.draft, template) if file]
    return files


def _file_state(path: Path) -> tuple[int, int, int] | None:
    """Return a file's size, modification time and inode number; None if it is not a file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino
