"""Files that hold swapd's own state: replaced in one step, quarantined when damaged.

All of them can be lost. A missing or unreadable file counts as no state. A file with any other
content than the expected is renamed to `<name>.damaged`, so that its content can be inspected.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import TypeVar

import msgspec

from swapd.system.private_files import private_directory

FOLDER = ".swapd"
"""Folder of the state files within the data directory; shared with the daemon's files."""
_T = TypeVar("_T")


def replace_file(path: Path, data: bytes, *, sync: bool = True, private: bool = False) -> None:
    """Replace the file in one step: a reader sees the old content or the new, never a part.

    A new file is readable by its owner only; an existing file keeps its mode, a link stays a link.
    A `private` file has mode 0600, and a link in its place is replaced. With `sync`, the data is on
    the disk before the file is renamed. Raises OSError and leaves no temporary file behind.
    """
    target = path if private else path.resolve()
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            if target.exists() and not private:
                os.fchmod(file.fileno(), target.stat().st_mode & 0o777)
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        Path(temporary).replace(target)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """Replace the file with this text in UTF-8, line ends unchanged; see `replace_file`."""
    replace_file(path, text.encode())


def size(path: Path) -> int:
    """Return the bytes of a file; 0 when it can't be found."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0


def decode_or_quarantine(path: Path, kind: type[_T], log: logging.Logger) -> _T | None:
    """Return the decoded JSON file; None when it is missing or damaged.

    A damaged file is quarantined. Raises OSError when the file can't be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        quarantine_file(path, error, log)
        return None


def read_state(path: Path, kind: type[_T]) -> _T | None:
    """Return the stored value; None when there is none that can be used."""
    log = logging.getLogger(__name__)
    try:
        return decode_or_quarantine(path, kind, log)
    except OSError as error:
        log.debug("%s is not used: %s", path, error)
        return None


def write_state(path: Path, value: object) -> None:
    """Store the value in place of the earlier one. Raises OSError."""
    private_directory(path.parent)
    text = msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1)
    replace_file(path, text + b"\n", private=True)


def quarantine_file(file: Path, reason: object, log: logging.Logger) -> None:
    """Rename the file to `<name>.damaged` and log a warning, also when the rename fails."""
    damaged = file.with_name(file.name + ".damaged")
    try:
        file.replace(damaged)
    except OSError as error:
        log.warning("%s is damaged (%s) and can't be renamed: %s", file, reason, error.strerror)
    else:
        log.warning(
            "%s is damaged (%s): it was renamed to %s, and a new file is started",
            file,
            reason,
            damaged,
        )
