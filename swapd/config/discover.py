"""Which models there are: GGUF files in the models' folder, and the demo models.

Files that are no model of their own (projectors, adapters, later parts) and files that cannot be
used are told with the reason; none of them stops the rest.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from swapd.config.metadata import DamagedModelError, Head, read_head
from swapd.config.naming import clean, distinct_names
from swapd.config.need import Facts, facts_of
from swapd.config.split import part_of, parts_of


@dataclass(frozen=True, slots=True)
class Found:
    """A model and the file (of several, the first) that holds it."""

    bare: str
    """Its name without prefix."""
    path: Path
    facts: Facts
    demo: bool = False
    """Shipped with the project: has no prefix."""


@dataclass(frozen=True, slots=True)
class Passed:
    """A file that is not listed, and why, as the end of a sentence that begins with its path."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Discovery:
    """What a look at the folders found."""

    found: tuple[Found, ...]
    broken: tuple[Passed, ...]
    """Files that should be models and cannot be used."""
    skipped: tuple[Passed, ...]
    """Files that are well and are no models of their own, or not yet."""


def discover(models_dir: Path, demo_dir: Path, *, now: float, min_age: float) -> Discovery:
    """Look through both folders; one that does not exist holds nothing.

    `now` is the time of day that files' ages are counted to, in seconds since the epoch.
    """
    look = _Look(now)
    demo = [
        Found(clean(path.stem), path, facts, demo=True)
        for path, facts in look.models(_here(demo_dir.absolute()), min_age=0)
    ]
    files, unreadable = _walk(models_dir)
    look.broken += unreadable
    models = dict(look.models(files, min_age=min_age))
    placed: list[tuple[PurePath, str]] = []
    for path in models:
        part = part_of(path.name)
        # The folder that was asked for is a folder like any other in names.
        inside = models_dir.name / PurePath(path.relative_to(models_dir))
        placed.append((inside, part.base if part is not None else path.stem))
    names = distinct_names(placed, (model.bare for model in demo))
    for (inside, _), (path, facts) in zip(placed, models.items(), strict=True):
        demo.append(Found(names[inside], path.absolute(), facts))
    return Discovery(
        found=tuple(sorted(demo, key=lambda model: (not model.demo, model.bare))),
        broken=tuple(sorted(look.broken, key=lambda passed: passed.path)),
        skipped=tuple(sorted(look.skipped, key=lambda passed: passed.path)),
    )


class _PassedOverError(Exception):
    """The file is well and no model of its own; the message says why."""


class _Look:
    """Sorts files into models, broken ones and those that are passed over."""

    def __init__(self, now: float) -> None:
        self.broken: list[Passed] = []
        self.skipped: list[Passed] = []
        self._now = now
        self._seen: dict[tuple[int, int], Path] = {}

    def models(self, files: list[Path], *, min_age: float) -> Iterator[tuple[Path, Facts]]:
        # A file itself comes before links to it, so that it is listed under its own name.
        for path in sorted(files, key=lambda file: (file.is_symlink(), file)):
            try:
                facts = self._model(path, min_age)
            except _PassedOverError as reason:
                self.skipped.append(Passed(path, str(reason)))
            except DamagedModelError as error:
                self.broken.append(Passed(path, str(error)))
            except OSError as error:
                self.broken.append(Passed(path, _os_reason(path, error)))
            else:
                if facts is not None:
                    yield path, facts

    def _model(self, path: Path, min_age: float) -> Facts | None:
        """What the model needs; None for a later part, which its first part speaks for."""
        if not _writable(str(path)):
            raise DamagedModelError("has a path that a command line in config.yaml cannot hold")
        part = part_of(path.name)
        if part is not None and part.number != 1:
            first = path.with_name(parts_of(path.name)[0])
            if not first.exists():
                raise DamagedModelError(f"belongs to {first.name}, which is missing")
            return None
        files = [path.with_name(name) for name in parts_of(path.name)]
        missing = [file.name for file in files[1:] if not file.exists()]
        if missing:
            raise DamagedModelError(f"is incomplete: {missing[0]} is missing")
        status = [file.stat() for file in files]
        if not all(stat.S_ISREG(found.st_mode) for found in status):
            # Opening a pipe would wait for whoever writes to it.
            raise DamagedModelError("is not a file")
        identity = (status[0].st_dev, status[0].st_ino)
        if identity in self._seen:
            raise _PassedOverError(f"is the same file as {self._seen[identity]}")
        self._seen[identity] = path
        age = self._now - max(found.st_mtime for found in status)
        if 0 <= age < min_age:
            raise _PassedOverError(f"changed {age:.0f} s ago and may still be being copied")
        heads = [read_head(file) for file in files]
        reason = _no_model(path, heads)
        if reason:
            raise _PassedOverError(reason)
        return facts_of(heads[0], sum(found.st_size for found in status))


def _no_model(path: Path, heads: list[Head]) -> str:
    """Why the file is no language model, or nothing."""
    head = heads[0]
    kind = head.text("general.type")
    if "mmproj" in path.stem.lower() or kind == "mmproj" or head.architecture == "clip":
        return "is a projector, part of another model"
    if kind == "adapter":
        return "is an adapter for another model"
    if kind not in {"", "model"}:
        return f"holds no model but a GGUF of type {kind}"
    if "tokenizer.ggml.model" not in head.fields:
        return "is not a language model: it has no tokenizer"
    if not any(part.tensors for part in heads):
        return "holds a vocabulary and no weights"
    return ""


def _writable(path: str) -> bool:
    """Whether a command line in YAML can name the path: printable, and nothing like a macro."""
    return path.isprintable() and "${" not in path


def _here(folder: Path) -> list[Path]:
    """The GGUF files right in the folder."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if _is_gguf(path.name)]


def _walk(root: Path) -> tuple[list[Path], list[Passed]]:
    """All GGUF files under a folder, through links too, each folder once.

    Linked folders are entered after all others, so that what is reached both ways is found at its
    own place. What begins with a dot is left alone.
    """
    files: list[Path] = []
    broken: list[Passed] = []
    seen: set[tuple[int, int]] = set()
    waiting, linked = [root], list[Path]()
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            # Nobody has to have a folder of models, and one may go while we look.
            continue
        except OSError as error:
            broken.append(Passed(folder, _os_reason(folder, error)))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            if _is_gguf(entry.name) and not path.is_dir():
                files.append(path)
            elif path.is_dir():
                (linked if entry.is_symlink() else waiting).append(path)
    return files, broken


def _is_gguf(name: str) -> bool:
    return name.lower().endswith(".gguf")


def _os_reason(path: Path, error: OSError) -> str:
    if path.is_symlink() and isinstance(error, FileNotFoundError):
        return f"is a link to {path.readlink()}, which is missing"
    return f"cannot be read: {error.strerror or error}"
