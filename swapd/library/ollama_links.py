"""Link the models of Ollama into LM Studio's folder, so that both programs list them.

    MODELS_DIR/ollama/NAME/NAME-SIZE-QUANT.gguf  ->  STORE/blobs/sha256-HEX

Links are created when MODELS_DIR exists (it is never created: it may be a disk that is not mounted)
and only to models that no file in it leads to yet. swapd's own links are recorded in
`.swapd/links.json` before they are created. A link counts as swapd's only while its target is the
recorded one, and only such a link is replaced or removed; a link into a missing store stays, since
the store may only be unmounted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from swapd.config.env import ModelStores
from swapd.config.errors import Problem
from swapd.library.discovery import DiscoveredModel
from swapd.library.naming import bare_name
from swapd.library.sources import ollama
from swapd.system.state_files import FOLDER, read_state, write_state

FILE = "links.json"
_BELOW = "ollama"


class _Record(msgspec.Struct):
    links: dict[str, str] = msgspec.field(default_factory=dict)
    """Each link with its target."""
    folders: list[str] = msgspec.field(default_factory=list)
    """Folders created for the links."""


@dataclass(frozen=True, slots=True)
class LinkChanges:
    """Changes made to the links."""

    created: tuple[Path, ...] = ()
    removed: tuple[Path, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass
class _Work:
    owned: dict[Path, Path]
    """swapd's links, existing or planned, each with its target."""
    folders: set[Path]
    created: list[Path] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def remove(self, link: Path) -> None:
        """Remove a link of swapd, and the folders created for it that are empty now."""
        try:
            link.unlink()
            for folder in (link.parent, link.parent.parent):
                if folder in self.folders and not any(folder.iterdir()):
                    folder.rmdir()
                    self.folders.discard(folder)
        except OSError as error:
            self._report(link, error)
            return
        self.removed.append(link)
        del self.owned[link]

    def create(self, link: Path, target: Path) -> None:
        """Create a link, or atomically replace one of swapd's own."""
        temporary = link.with_name(f".{link.name}.{os.getpid()}")
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(link):
                temporary.symlink_to(target)
                temporary.replace(link)
            else:
                link.symlink_to(target)
        except OSError as error:
            if temporary.is_symlink():
                temporary.unlink()
            self._report(link, error)
            return
        self.created.append(link)

    def _report(self, link: Path, error: OSError) -> None:
        message = f"{link}: {error.strerror or error}"
        self.problems.append(Problem("environment", 0, "MODELS_DIR", message))


def update_links(home: Path, stores: ModelStores, found: Iterable[DiscoveredModel]) -> LinkChanges:
    """Create the missing links and remove swapd's links whose model is gone.

    A link that can't be created or removed is reported and does not stop the others. Raises OSError
    when the record of the links can't be written; then none was created.
    """
    file = home / FOLDER / FILE
    record = read_state(file, _Record) or _Record()
    recorded = {Path(link): Path(target) for link, target in record.links.items()}
    existing = {link: target for link, target in recorded.items() if _target(link) == target}
    wanted = _wanted(stores, found)
    # Links in a MODELS_DIR that is missing now stay recorded: it may only be unmounted.
    unmounted = {link: target for link, target in recorded.items() if not _root(link).is_dir()}
    work = _Work({**existing, **unmounted}, {Path(folder) for folder in record.folders})
    for link, target in existing.items():
        if link not in wanted and _store_exists(target):
            work.remove(link)
    missing = {
        link: target
        for link, target in wanted.items()
        if existing.get(link) != target and (link in existing or not os.path.lexists(link))
    }
    work.owned |= missing
    new = {folder for link in missing for folder in (link.parent, link.parent.parent)}
    work.folders |= {folder for folder in new if not folder.exists()}
    # The record comes before the links: a link without a record would never be removed.
    changed = _record(work)
    if changed != record:
        write_state(file, changed)
    for link, target in missing.items():
        work.create(link, target)
    return LinkChanges(tuple(work.created), tuple(work.removed), tuple(work.problems))


def own_links(home: Path) -> frozenset[Path]:
    """Return the links that swapd created."""
    record = read_state(home / FOLDER / FILE, _Record) or _Record()
    return frozenset(
        Path(link) for link, to in record.links.items() if _target(Path(link)) == Path(to)
    )


def link_name(model: DiscoveredModel) -> Path:
    """Return the path of a model's link below MODELS_DIR, from which its name can be derived."""
    folder, _, rest = model.bare.partition(":")
    if bare_name(model.place.parent.name, model.place.name) == model.bare:
        return Path(_BELOW, folder, f"{model.place.name}.gguf")
    # Another model has the usual name.
    return Path(_BELOW, folder, f"{folder}-{rest}.gguf")


def _wanted(stores: ModelStores, found: Iterable[DiscoveredModel]) -> dict[Path, Path]:
    """Return every link that should exist, with its target."""
    if not stores.models_dir.is_dir():
        return {}
    return {
        stores.models_dir / link_name(model): model.path
        for model in found
        if model.source == ollama.NAME
        and not model.adapters
        and not any(stores.models_dir in path.parents for path in model.elsewhere)
    }


def _root(link: Path) -> Path:
    """Return the MODELS_DIR that a link was created in."""
    return link.parents[2]


def _target(link: Path) -> Path | None:
    """Return the target of a link; None for anything else."""
    try:
        return link.readlink()
    except OSError:
        return None


def _store_exists(blob: Path) -> bool:
    """Return True if the store that a blob is, or was, in exists."""
    return blob.parent.is_dir() and (blob.parent.parent / "manifests").is_dir()


def _record(work: _Work) -> _Record:
    links = {str(link): str(target) for link, target in sorted(work.owned.items())}
    return _Record(links, sorted(str(folder) for folder in work.folders))
