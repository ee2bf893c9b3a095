"""The folder in which sequences outlive the process, and what may be believed of its files.

A sequence is two files: `<name>` in llama.cpp's own format (`llama_state_seq_save_file`), and
`<name>.json`, the manifest, which tells what is in it, its size and its checksum. Both are written
beside and renamed, the manifest last: without a manifest there is nothing. What a worker keeps by
itself lies in a folder named by the worker's identity, so that nothing computed by another model,
other settings or another llama.cpp is ever looked at. What turns out to be damaged is removed.

Kept sequences that outlive the process: saved at its end, restored when a prompt wants them.
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
"""Stands in the folder of a worker whose restored sequences are of no use."""
ABANDONED = 60.0
"""Seconds after which what somebody was writing is taken for left behind."""
HEAD = 65_536


class DamagedError(Exception):
    """A file is not what its manifest says; the message is the reason, in a few words."""


class Manifest(msgspec.Struct, frozen=True):
    """What a manifest holds."""

    identity: str
    tokens: str
    """32-bit integers in this machine's order, in base64."""
    adapters: tuple[tuple[str, float], ...]
    size: int
    crc32: int


@dataclass(frozen=True, eq=False)
class SavedSequence:
    """One sequence on disk."""

    path: Path
    tokens: list[int]
    adapters: Adapters
    size: int
    crc32: int


def fingerprint(path: Path) -> str:
    """Tells a file from every other that may lie at `path`: place, size, time, and both ends."""
    told = path.stat()
    with path.open("rb") as file:
        ends = file.read(HEAD)
        file.seek(max(0, told.st_size - HEAD))
        ends += file.read(HEAD)
    facts = f"{path.resolve()}\0{told.st_size}\0{told.st_mtime_ns}\0".encode()
    return hashlib.blake2b(facts + ends, digest_size=16).hexdigest()


def identity_of(facts: Mapping[str, object]) -> str:
    """One name for all that a computed sequence depends on."""
    told = msgspec.json.encode(sorted((key, str(value)) for key, value in facts.items()))
    return hashlib.blake2b(told, digest_size=16).hexdigest()


def warn(sentence: str) -> None:
    """One line in the worker's log."""
    print(f"warning: {sentence}", file=sys.stderr, flush=True)


class KvFiles:
    """The files of one worker in `root`, which it may share with others."""

    def __init__(self, root: Path, identity: str, limit: int) -> None:
        """`limit`: bytes that all workers' files in `root` may take together."""
        self.root = root
        self.limit = limit
        self._identity = identity
        self._folder = root / identity

    @property
    def usable(self) -> bool:
        """Whether restoring has not been found to be of no use."""
        return not (self._folder / UNUSABLE).exists()

    def refuse(self, reason: str) -> None:
        """Restoring is of no use: removes what there is, and remembers not to try again."""
        warn(f"kept KV is of no use with this model and is not saved any more: {reason}")
        for saved in self.index():
            self.remove(saved.path)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / UNUSABLE).write_text(f"{reason}\n", encoding="utf-8")
        except OSError as error:
            warn(f"that can't be remembered in {self._folder}: {error.strerror}")

    def index(self) -> list[SavedSequence]:
        """What this worker's identity has on disk, the longest unused first.

        Removes what has no manifest or a wrong one.
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
                self.discard(path, "it was never finished")
        return found

    def read(self, path: Path) -> SavedSequence:
        """What the manifest of `path` says. Raises DamagedError."""
        try:
            told = msgspec.json.decode(_manifest(path).read_bytes(), type=Manifest)
            tokens = array("i", b64decode(told.tokens, validate=True))
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise DamagedError("it has no readable manifest") from error
        if told.identity != self._identity:
            raise DamagedError("it belongs to another model or other settings")
        return SavedSequence(path, tokens.tolist(), told.adapters, told.size, told.crc32)

    def check(self, saved: SavedSequence) -> None:
        """Raises DamagedError if the bytes are not those that were written."""
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
        """Where a sequence that the worker keeps by itself belongs."""
        told = hashlib.blake2b(array("i", tokens).tobytes(), digest_size=16)
        told.update(repr(adapters).encode())
        return self._folder / told.hexdigest()

    def write(
        self, path: Path, tokens: list[int], adapters: Adapters, save: Callable[[Path], int]
    ) -> SavedSequence:
        """Writes a sequence; `save` writes the data to the path it gets and returns its bytes.

        Raises OSError.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # conversations are private
        part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
        try:
            size = save(part)
            saved = SavedSequence(path, tokens, adapters, size, _crc32(part))
            _manifest(path).unlink(missing_ok=True)
            part.replace(path)
            packed = b64encode(array("i", tokens).tobytes()).decode()
            told = Manifest(self._identity, packed, adapters, size, saved.crc32)
            part.write_bytes(msgspec.json.encode(told))
            part.replace(_manifest(path))
        finally:
            part.unlink(missing_ok=True)
        return saved

    def make_room(self, size: int) -> bool:
        """Removes the oldest files of all workers until `size` bytes more keep the bound."""
        if size > self.limit:
            return False
        files = sorted(self._everybodys(), key=lambda path: _age(_manifest(path)))
        sizes = [_size(path) + _size(_manifest(path)) for path in files]
        total = sum(sizes) + size
        for path, own in zip(files, sizes, strict=True):
            if total <= self.limit:
                break
            self.remove(path)
            total -= own
        return True

    def remove(self, path: Path) -> None:
        """Removes a sequence, the manifest first; what can't be removed stays."""
        for one in (_manifest(path), path):
            try:
                one.unlink(missing_ok=True)
            except OSError as error:
                warn(f"{one} can't be removed: {error.strerror}")

    def discard(self, path: Path, reason: str) -> None:
        """Removes what is damaged, and says so."""
        warn(f"removed the kept KV {path.name}: {reason}")
        self.remove(path)

    def _everybodys(self) -> Iterator[Path]:
        """All that is no manifest: sequences, and what a worker that was killed left of one."""
        for path in self.root.glob("*/*"):
            if path.name.endswith(PART) and not _is_old(path):
                continue  # it is being written
            if not path.name.endswith(MANIFEST) and path.name != UNUSABLE:
                yield path


def _manifest(path: Path) -> Path:
    return path.with_name(path.name + MANIFEST)


def _age(path: Path) -> float:
    """When it was last used; 0 for what is not there (any more)."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _is_old(path: Path) -> bool:
    """Whether nobody is writing it any more."""
    return time.time() - _age(path) > ABANDONED


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _crc32(path: Path) -> int:
    """0.06 s for 220 MB in the page cache."""
    if _size(path) == 0:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return zlib.crc32(data)


WORTH_SAVING = 32
"""Tokens from which a sequence is written, and which a restore must save beyond what is there."""
ASSUMED_RATE = 200e6
"""Bytes a second that a disk takes, until one was written to."""


class PersistentKvCache:
    """The cache's kept sequences on disk. The engine thread's own."""

    def __init__(
        self, files: KvFiles, context: Context, cache: PrefixCache, counters: Counters
    ) -> None:
        self.files = files
        self._context = context
        self._cache = cache
        self._counters = counters
        self._index: list[SavedSequence] | None = None
        self._rate = ASSUMED_RATE

    def fetch(self, wish: ActiveSequence, admitted: Sequence[ActiveSequence], growing: int) -> bool:
        """Brings back what `wish` can go on from, if that is more than the cache has; whether.

        `admitted` and what they have pending keep their cells.
        """
        if not wish.reuses or len(wish.tokens) <= WORTH_SAVING or not self.files.usable:
            return False
        _, here = self._cache.find(wish, admitted)
        best, most = None, here + WORTH_SAVING - 1
        for saved in self._saved():
            if saved.adapters != wish.adapters:
                continue
            limit = min(len(saved.tokens), len(wish.tokens) - 1 - wish.unplayed)
            common = common_prefix(saved.tokens, wish.tokens, limit)
            if common > most and (self._context.cuts or common == len(saved.tokens)):
                best, most = saved, common
        if best is None:
            return False
        try:
            return self.restore(best, slot=-1, growing=growing) is not None
        except DamagedError as damage:
            self._lost(best)
            self.files.discard(best.path, str(damage))
            return False

    def restore(self, saved: SavedSequence, *, slot: int, growing: int) -> CachedSequence | None:
        """Makes `saved` a kept sequence; None if there is no room for it.

        Raises DamagedError if it is not what it should be.
        """
        self.files.check(saved)
        count = len(saved.tokens)
        seq_id = self._cache.reserve(count, growing)
        if seq_id is None:
            return None
        began = time.perf_counter()
        loaded = self._context.load_sequence(saved.path, seq_id, count)
        kept = CachedSequence(saved.tokens, seq_id, saved.adapters, slot, saved.path.name)
        if loaded != saved.tokens:
            self._cache.abandon(seq_id)
            raise DamagedError("llama.cpp does not restore it")
        self._cache.fill(kept)
        last = self._context.last_position(seq_id)
        if last != count - 1:
            self._cache.give_up(kept)
            self.refuse(f"after a restore of {count} tokens the last position was {last}")
            return None
        self._counters.restored_tokens += count
        self._counters.restore.observe(time.perf_counter() - began)
        return kept

    def refuse(self, reason: str) -> None:
        """A restore turned out to be of no use with this model."""
        self.files.refuse(reason)
        self._index = []

    def save_all(self, seconds: float) -> int:
        """Writes what is kept and not on disk yet, the latest first; stops in time.

        Returns how many it wrote.
        """
        if not self.files.usable:
            return 0
        until = time.perf_counter() + seconds
        written = 0
        for kept in reversed(self._cache.kept):
            known = {saved.path.name for saved in self._saved()}
            if kept.cached < WORTH_SAVING or kept.file in known:
                continue
            size = self._context.sequence_size(kept.seq_id)
            if size / self._rate > until - time.perf_counter() or not self.files.make_room(size):
                continue
            path = self.files.place(kept.tokens, kept.adapters)
            try:
                self._supersede(self.save(kept.seq_id, path, kept.tokens, kept.adapters))
            except OSError as error:
                warn(f"the KV of {kept.cached} tokens is not kept: {error}")
                break
            kept.file = path.name
            written += 1
        return written

    def save(self, seq_id: int, path: Path, tokens: list[int], adapters: Adapters) -> SavedSequence:
        """Writes one sequence. Raises OSError."""
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
        """What is on disk; looked up once."""
        if self._index is None:
            self._index = self.files.index()
        return self._index

    def _supersede(self, new: SavedSequence) -> None:
        """What is only the beginning of `new` need not stay, if `new` can be cut to it."""
        for old in self._saved()[:]:
            length = len(old.tokens)
            whole = old.adapters == new.adapters and new.tokens[:length] == old.tokens
            if whole and (self._context.cuts or length == len(new.tokens)):
                if old.path != new.path:
                    self.files.remove(old.path)
                self._lost(old)
        self._saved().append(new)

    def _lost(self, saved: SavedSequence) -> None:
        self._index = [other for other in self._saved() if other is not saved]
