"""What was learned of models, kept from one run of swapd to the next.

A JSON file in the home's state, written beside and renamed, so that there is the old one or the
new one. What is kept belongs to a command together with the files that it names: another context,
or another file in the same place, is another model, of which nothing is known.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
import tempfile
from pathlib import Path

import msgspec

from swapd.domain.models import Catalog, ModelProfile, ModelSpec
from swapd.system.state_files import quarantine_file

VERSION = 1
WRITE_AFTER = 2.0
"""Seconds from learning something to writing it down, so that much at once is written once."""
MOST = 1000
"""Commands that are remembered; beyond this the ones longest unheard of are forgotten."""


class _File(msgspec.Struct):
    version: int
    models: dict[str, ModelProfile]


class ProfileStore:
    """What is known of commands, by their identities. The file is read once, at the start."""

    def __init__(self, path: Path, home: Path, log: logging.Logger) -> None:
        """`home` is where commands run, and their relative paths begin."""
        self._path = path
        self._home = home
        self._log = log
        self._timer: asyncio.TimerHandle | None = None
        self._known = self._read()

    def identity(self, spec: ModelSpec) -> str:
        """What the command of this model and the files that it names are now."""
        files = [_look(self._home / word) for word in paths_in(spec.launch.argv)]
        said = (spec.launch.argv, spec.launch.env, str(self._home), files)
        return hashlib.sha256(msgspec.json.encode(said)).hexdigest()[:32]

    def recall(self, catalog: Catalog) -> dict[str, ModelProfile]:
        """What is known of these models, by name."""
        specs = catalog.models.values()
        found = {spec.name: self._known.get(self.identity(spec)) for spec in specs}
        return {name: learned for name, learned in found.items() if learned is not None}

    def note(self, identity: str, learned: ModelProfile) -> None:
        """This is known from now on, and soon written down with what is learned meanwhile."""
        self._known.pop(identity, None)
        self._known[identity] = learned
        while len(self._known) > MOST:
            del self._known[next(iter(self._known))]
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WRITE_AFTER, self._write)

    def close(self) -> None:
        """Write down what is not yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._write()

    def _write(self) -> None:
        """A failure is told, and costs no more than estimates. Takes a millisecond."""
        self._timer = None
        text = msgspec.json.format(msgspec.json.encode(_File(VERSION, self._known)), indent=1)
        try:
            _replace(self._path, text + b"\n")
        except OSError as error:
            self._log.warning("%s can't be written: %s", self._path, error.strerror)

    def _read(self) -> dict[str, ModelProfile]:
        try:
            file = msgspec.json.decode(self._path.read_bytes(), type=_File)
            if file.version != VERSION:
                raise msgspec.ValidationError(f"it has version {file.version}")
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._log.warning("%s can't be read: %s", self._path, error.strerror)
            return {}
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            quarantine_file(self._path, error, self._log)
            return {}
        return file.models


def paths_in(argv: tuple[str, ...]) -> list[str]:
    """Words that may name files, the values of flags written `--flag=value` or `name=path` too."""
    words = [word.rpartition("=")[2] for word in argv]
    return [word for word in words if "/" in word or word.endswith(".gguf")]


def _look(path: Path) -> tuple[str, int, int] | None:
    """A file's path, size and time of change; None for what is no file.

    A folder is none: what workers leave in theirs changes its time.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return str(path), status.st_size, status.st_mtime_ns


def _replace(path: Path, data: bytes) -> None:
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(beside).replace(path)
    except OSError:
        Path(beside).unlink(missing_ok=True)
        raise
