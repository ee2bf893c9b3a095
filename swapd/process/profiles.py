"""Model profiles: measurements of models, kept from one run of swapd to the next.

The store is a JSON file in the state directory, replaced as a whole. A profile belongs to a
command together with the files that the command names: another context size, or another file at
the same path, is another model, and starts without a profile.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import stat
from pathlib import Path

import msgspec

from swapd.domain.models import Catalog, ModelProfile, ModelSpec
from swapd.system.state_files import decode_or_quarantine, quarantine_file, replace_file

VERSION = 1
"""Version of the file format; a file of any other version is quarantined."""
WRITE_DELAY = 2.0
"""Seconds from a new measurement to the write, so that several share one write."""
MAX_BYTES = 2**50
MAX_LOAD_SECONDS = 86400.0
"""Largest plausible measurements: a damaged file must not make a model too large to start."""
MAX_PROFILES = 1000
"""Profiles in the store; beyond this the least recently saved are dropped."""


class _File(msgspec.Struct):
    version: int
    models: dict[str, ModelProfile]


class ProfileStore:
    """Profiles by command identity. The file is read once, at the start."""

    def __init__(self, path: Path, home: Path, log: logging.Logger) -> None:
        """Read the store at `path`; commands run in `home`, and relative paths start there."""
        self._path = path
        self._home = home
        self._log = log
        self._timer: asyncio.TimerHandle | None = None
        self._profiles = self._read()

    def identity(self, spec: ModelSpec) -> str:
        """Return a hash of the model's command and of the current state of its files."""
        files = [_fingerprint(self._home / word) for word in paths_in(spec.launch.argv)]
        parts = (spec.launch.argv, spec.launch.env, str(self._home), files)
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]

    def load(self, catalog: Catalog) -> dict[str, ModelProfile]:
        """Return the stored profiles of the catalog's models, by model name."""
        specs = catalog.models.values()
        found = {spec.name: self._profiles.get(self.identity(spec)) for spec in specs}
        return {name: profile for name, profile in found.items() if profile is not None}

    def save(self, identity: str, profile: ModelProfile) -> None:
        """Store the profile; the file is written soon, together with other new profiles."""
        self._profiles.pop(identity, None)
        self._profiles[identity] = profile
        while len(self._profiles) > MAX_PROFILES:
            del self._profiles[next(iter(self._profiles))]
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WRITE_DELAY, self._write)

    def close(self) -> None:
        """Write pending changes."""
        if self._timer is not None:
            self._timer.cancel()
            self._write()

    def _write(self) -> None:
        """Write the file, in about a millisecond; log a failure, which costs estimates only.

        The write is not forced to the disk: after a power cut the old profiles will do.
        """
        self._timer = None
        text = msgspec.json.format(msgspec.json.encode(_File(VERSION, self._profiles)), indent=1)
        try:
            replace_file(self._path, text + b"\n", sync=False, private=True)
        except OSError as error:
            self._log.warning("%s can't be written: %s", self._path, error.strerror)

    def _read(self) -> dict[str, ModelProfile]:
        try:
            file = decode_or_quarantine(self._path, _File, self._log)
        except OSError as error:
            self._log.warning("%s can't be read: %s", self._path, error.strerror)
            return {}
        if file is None:
            return {}
        if file.version != VERSION:
            quarantine_file(self._path, f"it has version {file.version}", self._log)
            return {}
        return {
            identity: profile
            for identity, profile in file.models.items()
            if 0 <= profile.bytes <= MAX_BYTES and 0 <= profile.load_seconds <= MAX_LOAD_SECONDS
        }


def paths_in(argv: tuple[str, ...]) -> list[str]:
    """Return the words that may name files, values of `--flag=value` and `name=path` included."""
    words = [word.rpartition("=")[2] for word in argv]
    return [word for word in words if "/" in word or word.endswith(".gguf")]


def _fingerprint(path: Path) -> tuple[str, int, int] | None:
    """Return a file's path, size and modification time; None unless it is a regular file.

    Folders are left out: files that workers write into them change a folder's time.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return str(path), status.st_size, status.st_mtime_ns
