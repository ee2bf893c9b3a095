"""The persistent KV cache: cached sequences on disk, saved at the end of the process.

A sequence is two files: `<name>` in llama.cpp's own format (`llama_state_seq_save_file`), and
`<name>.json`, the manifest with its tokens, its size and its checksum. Both are written to
temporary files and renamed, the manifest last: data without a manifest is ignored. Sequences that
a worker saves by itself lie in a folder named by the worker's identity, so that no data computed
by another model, other settings or another llama.cpp is ever used. Damaged files are removed.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import sys
import time
import zlib
from array import array
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from workers.engine.metrics import Counters
from workers.engine.prefix_cache import (
    ActiveSequence,
    Adapters,
    CachedSequence,
    PrefixCache,
    common_prefix,
)
from workers.llama.context import Context

MANIFEST, PART = ".json", ".part"
UNUSABLE = "unusable"
"""Name of the marker file in the folder of a worker whose restored sequences are unusable."""
ABANDONED = 60.0
"""Seconds after which an unfinished file counts as abandoned."""
HEAD = 65_536
"""Bytes at each end of a file that its fingerprint covers."""


class DamagedError(Exception):
    """A file is not what its manifest says; the message is the reason, in a few words."""


class Manifest(msgspec.Struct, frozen=True):
    """The contents of a manifest."""

    identity: str
    tokens: str
    """32-bit integers in the byte order of the host, in base64."""
    adapters: tuple[tuple[str, float], ...]
    size: int
    crc32: int


@dataclass(frozen=True, eq=False)
class SavedSequence:
    """A sequence on disk."""

    path: Path
    tokens: list[int]
    adapters: Adapters
    size: int
    crc32: int


def fingerprint(path: Path) -> str:
    """Return a hash of a file's path, size, time and both ends."""
    status = path.stat()
    with path.open("rb") as file:
        ends = file.read(HEAD)
        file.seek(max(0, status.st_size - HEAD))
        ends += file.read(HEAD)
    key = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode()
    return hashlib.blake2b(key + ends, digest_size=16).hexdigest()


def identity_of(facts: Mapping[str, object]) -> str:
    """Return a hash of the facts that a computed sequence depends on."""
    encoded = msgspec.json.encode(sorted((key, str(value)) for key, value in facts.items()))
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def warn(sentence: str) -> None:
    """Write a warning of one line to the worker's log."""
    print(f"warning: {sentence}", file=sys.stderr, flush=True)


class KvFiles:
    """The files of one worker in `root`, which it may share with others."""

    def __init__(self, root: Path, identity: str, limit: int) -> None:
        """Use at most `limit` bytes for the files of all workers in `root` together."""
        self.root = root
        self.limit = limit
        self._identity = identity
        self._folder = root / identity

    @property
    def usable(self) -> bool:
        """True unless a restored sequence turned out to be unusable with this model."""
        return not (self._folder / UNUSABLE).exists()

    def disable(self, reason: str) -> None:
        """Remove the saved sequences and save and restore no more, in later processes too."""
        warn(f"the saved KV cache can't be used with this model and is disabled: {reason}")
        for saved in self.index():
            self.remove(saved.path)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / UNUSABLE).write_text(f"{reason}\n", encoding="utf-8")
        except OSError as error:
            warn(f"{self._folder / UNUSABLE} can't be written: {error.strerror}")

    def index(self) -> list[SavedSequence]:
        """Return the saved sequences of this worker's identity, the least recently used first.

        Files without a manifest, or with a wrong one, are removed.
        """
        try:
            names = sorted(self._folder.iterdir(), key=_age)
        except FileNotFoundError:
            return []
        found = []
        for path in names:
            if path.name == UNUSABLE:
                continue
            data = path.with_name(path.name.removesuffix(MANIFEST))
            if path.name.endswith(MANIFEST):
                try:
                    found.append(self.read(data))
                except DamagedError as damage:
                    self.discard(data, str(damage))
            elif _is_old(path) and not _manifest(path).exists():
                self.discard(path, "it is incomplete")
        return found

    def read(self, path: Path) -> SavedSequence:
        """Return the saved sequence of a manifest. Raises DamagedError."""
        try:
            manifest = msgspec.json.decode(_manifest(path).read_bytes(), type=Manifest)
            tokens = array("i", b64decode(manifest.tokens, validate=True))
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise DamagedError("it has no readable manifest") from error
        if manifest.identity != self._identity:
            raise DamagedError("it belongs to another model or other settings")
        return SavedSequence(
            path, tokens.tolist(), manifest.adapters, manifest.size, manifest.crc32
        )

    def check(self, saved: SavedSequence) -> None:
        """Compare the data with its manifest. Raises DamagedError."""
        try:
            size = saved.path.stat().st_size
            if size != saved.size:
                raise DamagedError(f"it has {size} bytes and not {saved.size}")
            if _crc32(saved.path) != saved.crc32:
                raise DamagedError("its checksum is wrong")
            os.utime(_manifest(saved.path))
        except OSError as error:
            raise DamagedError(error.strerror or "it can't be read") from error

    def place(self, tokens: list[int], adapters: Adapters) -> Path:
        """Return the path of a sequence that the worker saves by itself."""
        digest = hashlib.blake2b(array("i", tokens).tobytes(), digest_size=16)
        digest.update(repr(adapters).encode())
        return self._folder / digest.hexdigest()

    def write(
        self, path: Path, tokens: list[int], adapters: Adapters, save: Callable[[Path], int]
    ) -> SavedSequence:
        """Write a sequence; `save` writes the data to a path and returns its bytes.

        Raises OSError.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # conversations are private
        part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
        try:
            size = save(part)
            saved = SavedSequence(path, tokens, adapters, size, _crc32(part))
            _manifest(path).unlink(missing_ok=True)
            part.replace(path)
            encoded = b64encode(array("i", tokens).tobytes()).decode()
            manifest = Manifest(self._identity, encoded, adapters, size, saved.crc32)
            part.write_bytes(msgspec.json.encode(manifest))
            part.replace(_manifest(path))
        finally:
            part.unlink(missing_ok=True)
        return saved

    def make_room(self, size: int) -> bool:
        """Remove the oldest files of all workers until `size` more bytes fit within the limit."""
        if size > self.limit:
            return False
        files = sorted(self._all_files(), key=lambda path: _age(_manifest(path)))
        sizes = [_size(path) + _size(_manifest(path)) for path in files]
        total = sum(sizes) + size
        for path, own in zip(files, sizes, strict=True):
            if total <= self.limit:
                break
            self.remove(path)
            total -= own
        return True

    def remove(self, path: Path) -> None:
        """Remove a sequence, the manifest first; a file that can't be removed stays."""
        for one in (_manifest(path), path):
            try:
                one.unlink(missing_ok=True)
            except OSError as error:
                warn(f"{one} can't be removed: {error.strerror}")

    def discard(self, path: Path, reason: str) -> None:
        """Remove a damaged sequence and log it."""
        warn(f"removed the saved KV cache {path.name}: {reason}")
        self.remove(path)

    def _all_files(self) -> Iterator[Path]:
        """Yield all files but manifests: sequences, and incomplete ones of killed workers."""
        for path in self.root.glob("*/*"):
            if path.name.endswith(PART) and not _is_old(path):
                continue  # it is being written
            if not path.name.endswith(MANIFEST) and path.name != UNUSABLE:
                yield path


def _manifest(path: Path) -> Path:
    return path.with_name(path.name + MANIFEST)


def _age(path: Path) -> float:
    """Return the time of the last use; 0 for a file that does not exist."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _is_old(path: Path) -> bool:
    """Return True if the file is no longer being written."""
    return time.time() - _age(path) > ABANDONED


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _crc32(path: Path) -> int:
    """Return the checksum of a file; 0.06 s for 220 MB in the page cache."""
    if _size(path) == 0:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return zlib.crc32(data)


WORTH_SAVING = 32
"""Tokens from which a sequence is saved, and which a restore must add to the cached prefix."""
ASSUMED_RATE = 200e6
"""Bytes per second of a disk, before the first measurement."""


class PersistentKvCache:
    """Saves and restores the cached sequences of a context. Used by the engine thread alone."""

    def __init__(
        self, files: KvFiles, context: Context, cache: PrefixCache, counters: Counters
    ) -> None:
        self.files = files
        self._context = context
        self._cache = cache
        self._counters = counters
        self._index: list[SavedSequence] | None = None
        self._rate = ASSUMED_RATE

    def fetch(
        self, request: ActiveSequence, active: Sequence[ActiveSequence], pending: int
    ) -> bool:
        """Restore the longest prefix of `request` if it is longer than the cached one.

        Returns True if it did. The `active` sequences and their `pending` tokens keep their cells.
        """
        if not request.reuses or len(request.tokens) <= WORTH_SAVING or not self.files.usable:
            return False
        _, cached = self._cache.find(request, active)
        best, most = None, cached + WORTH_SAVING - 1
        for saved in self._saved():
            if saved.adapters != request.adapters:
                continue
            limit = min(len(saved.tokens), len(request.tokens) - 1 - request.pending_replay)
            common = common_prefix(saved.tokens, request.tokens, limit)
            if common > most and (self._context.can_truncate or common == len(saved.tokens)):
                best, most = saved, common
        if best is None:
            return False
        try:
            return self.restore(best, slot=-1, pending=pending) is not None
        except DamagedError as damage:
            self._drop(best)
            self.files.discard(best.path, str(damage))
            return False

    def restore(self, saved: SavedSequence, *, slot: int, pending: int) -> CachedSequence | None:
        """Load a saved sequence into the cache; None if there are no cells for it.

        Raises DamagedError if the file is damaged.
        """
        self.files.check(saved)
        count = len(saved.tokens)
        seq_id = self._cache.reserve(count, pending)
        if seq_id is None:
            return None
        began = time.perf_counter()
        loaded = self._context.load_sequence(saved.path, seq_id, count)
        entry = CachedSequence(saved.tokens, seq_id, saved.adapters, slot, saved.path.name)
        if loaded != saved.tokens:
            self._cache.cancel_reservation(seq_id)
            raise DamagedError("llama.cpp does not restore it")
        self._cache.fill(entry)
        last = self._context.last_position(seq_id)
        if last != count - 1:
            self._cache.evict(entry)
            self.disable(f"after a restore of {count} tokens the last position was {last}")
            return None
        self._counters.restored_tokens += count
        self._counters.restore.observe(time.perf_counter() - began)
        return entry

    def disable(self, reason: str) -> None:
        """Save and restore no more, because a restore turned out to be unusable."""
        self.files.disable(reason)
        self._index = []

    def save_all(self, seconds: float) -> int:
        """Save the cached sequences that are not on disk yet, the latest first, within `seconds`.

        Returns the number of saved sequences.
        """
        if not self.files.usable:
            return 0
        until = time.perf_counter() + seconds
        written = 0
        for entry in reversed(self._cache.entries):
            known = {saved.path.name for saved in self._saved()}
            if entry.cached < WORTH_SAVING or entry.file in known:
                continue
            size = self._context.sequence_size(entry.seq_id)
            if size / self._rate > until - time.perf_counter() or not self.files.make_room(size):
                continue
            path = self.files.place(entry.tokens, entry.adapters)
            try:
                self._supersede(self.save(entry.seq_id, path, entry.tokens, entry.adapters))
            except OSError as error:
                warn(f"the KV cache of {entry.cached} tokens can't be saved: {error}")
                break
            entry.file = path.name
            written += 1
        return written

    def save(self, seq_id: int, path: Path, tokens: list[int], adapters: Adapters) -> SavedSequence:
        """Save one sequence. Raises OSError."""
        began = time.perf_counter()
        saved = self.files.write(
            path,
            tokens,
            adapters,
            lambda part: self._context.save_sequence(part, seq_id, tokens),
        )
        seconds = time.perf_counter() - began
        self._rate = saved.size / max(seconds, 1e-3)
        self._counters.save.observe(seconds)
        return saved

    def _saved(self) -> list[SavedSequence]:
        """Return the saved sequences, read from disk once."""
        if self._index is None:
            self._index = self.files.index()
        return self._index

    def _supersede(self, new: SavedSequence) -> None:
        """Add a saved sequence; remove its prefixes from disk if it can be truncated to them."""
        for old in self._saved()[:]:
            length = len(old.tokens)
            whole = old.adapters == new.adapters and new.tokens[:length] == old.tokens
            if whole and (self._context.can_truncate or length == len(new.tokens)):
                if old.path != new.path:
                    self.files.remove(old.path)
                self._drop(old)
        self._saved().append(new)

    def _drop(self, saved: SavedSequence) -> None:
        self._index = [other for other in self._saved() if other is not saved]
