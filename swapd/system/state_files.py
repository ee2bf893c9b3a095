"""Small facts that swapd keeps for itself: JSON files in the home's `.swapd`, each replaced whole.

All of them can be lost. A file that is not there, that cannot be read or that holds anything but
what was written counts as nothing kept; one that is damaged is set aside for people.

Files replaced in one step.

A file that can't be read as what it should be is kept for people and out of the way.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import TypeVar

import msgspec


def replace_text(path: Path, text: str) -> None:
    """Replace the file in one step: a reader sees the old text or the new, never a part.

    Written as it is, line ends too. A new file is its owner's alone; an old one keeps its mode. A
    link stays a link. Raises OSError and leaves nothing behind.
    """
    target = path.resolve()
    handle, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            if target.exists():
                os.fchmod(file.fileno(), target.stat().st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).replace(target)
    except OSError:
        Path(beside).unlink(missing_ok=True)
        raise


def size(path: Path) -> int:
    """Bytes of a file; 0 when there is none to look at."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0


FOLDER = ".swapd"
"""Within the home; the daemon keeps its own files there too."""
_T = TypeVar("_T")


def read_state(path: Path, kind: type[_T]) -> _T | None:
    """What was kept, or None. A damaged file is renamed to `<name>.damaged`, with a warning."""
    log = logging.getLogger(__name__)
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        damaged = path.with_name(path.name + ".damaged")
        log.warning("%s is damaged (%s): it is now %s, and is made anew", path, error, damaged)
        try:
            path.replace(damaged)
        except OSError as failure:
            log.warning("%s can't be renamed: %s", path, failure.strerror)
    except OSError as error:
        log.debug("%s is not used: %s", path, error)
    return None


def write_state(path: Path, value: object) -> None:
    """Keep the value, in place of what was kept before. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1)
    replace_text(path, text.decode() + "\n")


def quarantine_file(file: Path, why: object, log: logging.Logger) -> None:
    """Rename the file to `<name>.damaged` and say so; where that fails, say that."""
    damaged = file.with_name(file.name + ".damaged")
    try:
        file.replace(damaged)
    except OSError as error:
        log.warning("%s is damaged (%s) and can't be renamed: %s", file, why, error.strerror)
    else:
        log.warning("%s is damaged (%s): it is now %s, and a new one is begun", file, why, damaged)
