"""The models that are configured, with what is worth knowing of each.

Reading a configuration of hundreds of models takes a moment, so what was read is kept beside the
lock and used again for as long as the files it came from are the same.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from swapd import __version__
from swapd.doors.cli.say import FailedError
from swapd.home import WORKER_COMMAND, Home, demo_folder

if TYPE_CHECKING:
    from swapd.words.catalog import ModelSpec

KEPT = "models.json"


class Entry(msgspec.Struct, frozen=True):
    """One configured model. 0 and empty text: not known."""

    name: str
    aliases: tuple[str, ...]
    argv: tuple[str, ...]
    file: str
    """Of a model in several files the first; empty when its command names none."""
    size: int
    source: str
    """demo, ollama, hugging face, folder, or command where no file is named."""
    quantisation: str
    context: int
    need: int
    ttl: float
    slots: int
    pinned: bool
    preload: bool
    unlisted: bool
    title: str
    description: str


class _Kept(msgspec.Struct):
    version: str
    stamps: list[tuple[str, int, int]]
    entries: list[Entry]


def models(home: Home) -> list[Entry]:
    """All configured models by name. Raises FailedError when the configuration can't be used."""
    if not home.config.is_file():
        from swapd.doors.cli.syncing import sync

        sync(force=False, say=lambda _: None)
    stamps = [_stamp(path) for path in (home.config, home.folder / ".env")]
    kept = _read(home.state / KEPT)
    if kept is not None and kept.version == __version__ and kept.stamps == stamps:
        return kept.entries
    entries = _look(home)
    # What depends on this shell's variables is not kept for the next one.
    if b"${env." not in home.config.read_bytes():
        _write(home.state / KEPT, _Kept(__version__, stamps, entries))
    return entries


def find(home: Home, name: str) -> Entry:
    """The model that `name` means. Raises FailedError with the nearest names."""
    from swapd.config.resolve import Ambiguous, Spellings

    entries = {entry.name: entry for entry in models(home)}
    exact = entries.get(name) or next((e for e in entries.values() if name in e.aliases), None)
    if exact is not None:
        return exact
    found = Spellings({e.name: e.aliases for e in entries.values()}).find(name)
    if isinstance(found, Ambiguous):
        raise FailedError(str(found))
    if found is None:
        raise FailedError(_unknown(name, entries))
    return entries[found]


def _unknown(name: str, entries: dict[str, Entry]) -> str:
    from swapd.config.problems import did_you_mean

    spelled = [n for e in entries.values() for n in (e.name, *e.aliases)]
    if not entries:
        return f"there is no model {name}: none is configured"
    shown = list(entries)[:12]
    more = f" and {len(entries) - 12} more" if len(entries) > 12 else ""
    near = did_you_mean(name, spelled)
    return f"there is no model {name}" + (near or f"; there are: {', '.join(shown)}{more}")


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return (str(path), 0, 0)
    return (str(path), status.st_size, status.st_mtime_ns)


def _read(path: Path) -> _Kept | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _write(path: Path, kept: _Kept) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(msgspec.json.encode(kept))
    beside.replace(path)


def _look(home: Home) -> list[Entry]:
    from swapd.config.env import read_env
    from swapd.config.load import load
    from swapd.config.problems import ConfigError
    from swapd.effects import memory

    try:
        env = read_env(home.folder, os.environ)
        loaded = load(home.config, env, worker_command=WORKER_COMMAND, total_memory=memory.total())
    except ConfigError as error:
        raise FailedError(f"the configuration can't be used:\n{error}") from error
    return [_entry(home, spec) for _, spec in sorted(loaded.catalog.models.items())]


def _entry(home: Home, spec: ModelSpec) -> Entry:
    from swapd.config.specs import model_file

    file = model_file(spec) or ""
    path = home.folder / file
    return Entry(
        name=spec.name,
        aliases=spec.aliases,
        argv=spec.argv,
        file=str(path) if file else "",
        size=_size(path) if file else 0,
        source=_source(path) if file else "command",
        quantisation=quantisation(path.name),
        context=spec.context,
        need=spec.need_bytes,
        ttl=spec.ttl,
        slots=spec.slots,
        pinned=spec.pinned,
        preload=spec.preload,
        unlisted=spec.unlisted,
        title=spec.title,
        description=spec.description,
    )


def _size(path: Path) -> int:
    """Bytes of all parts; 0 when one is missing."""
    from swapd.config.split import parts_of

    try:
        return sum(Path(part).stat().st_size for part in parts_of(str(path)))
    except OSError:
        return 0


def _source(path: Path) -> str:
    real = path.resolve()
    if real.parent == demo_folder().resolve():
        return "demo"
    if real.parent.name == "blobs" and real.name.startswith("sha256-"):
        return "ollama"
    if "snapshots" in path.parts and any(part.startswith("models--") for part in path.parts):
        return "hugging face"
    return "folder"


def quantisation(file: str) -> str:
    """The quantisation that a file's name tells, in capitals; empty when it tells none."""
    found = re.findall(
        r"(?i)(?<![a-z0-9])((?:UD-)?I?Q\d\w*|TQ\d_\d|MXFP4(?:_\w+)?|BF16|F16|F32)(?![a-z0-9])", file
    )
    return str(found[-1]).upper() if found else ""
