"""The bridge: links in LM Studio's folder to the models that Ollama has, so that both see them.

    MODELS_DIR/ollama/NAME/NAME-SIZE-QUANT.gguf  ->  STORE/blobs/sha256-HEX

Links are made when MODELS_DIR is there (it is never created: it may be a disk that is not mounted)
and only to models to which none of its files leads yet. Which links are swapd's is written down in
`.swapd/links.json` before they are made. A link counts as swapd's only as long as it leads where
that file says, and only such a link is ever replaced or removed; so is no link into a store that is
not there, since what is not mounted is not gone.
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


class _Kept(msgspec.Struct):
    links: dict[str, str] = msgspec.field(default_factory=dict)
    """Each link with where it leads."""
    folders: list[str] = msgspec.field(default_factory=list)
    """Folders that were made for them."""


@dataclass(frozen=True, slots=True)
class Links:
    """What was done to the links."""

    made: tuple[Path, ...] = ()
    removed: tuple[Path, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass
class _Work:
    owned: dict[Path, Path]
    """Links that are ours, or will be, each with where it leads."""
    folders: set[Path]
    made: list[Path] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def remove(self, link: Path) -> None:
        """Remove a link of ours, and the folders made for it that are empty now."""
        try:
            link.unlink()
            for folder in (link.parent, link.parent.parent):
                if folder in self.folders and not any(folder.iterdir()):
                    folder.rmdir()
                    self.folders.discard(folder)
        except OSError as error:
            self._unable(link, error)
            return
        self.removed.append(link)
        del self.owned[link]

    def make(self, link: Path, target: Path) -> None:
        """Put a link where nothing is, or in one step in the place of one of ours."""
        beside = link.with_name(f".{link.name}.{os.getpid()}")
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(link):
                beside.symlink_to(target)
                beside.replace(link)
            else:
                link.symlink_to(target)
        except OSError as error:
            if beside.is_symlink():
                beside.unlink()
            self._unable(link, error)
            return
        self.made.append(link)

    def _unable(self, link: Path, error: OSError) -> None:
        message = f"{link}: {error.strerror or error}"
        self.problems.append(Problem("environment", 0, "MODELS_DIR", message))


def update_links(home: Path, stores: ModelStores, found: Iterable[DiscoveredModel]) -> Links:
    """Make the links that are missing and remove those of ours whose model is gone.

    What can't be made or removed is told and stops nothing else. Raises OSError when it can't be
    written down whose the links are; then none was made.
    """
    file = home / FOLDER / FILE
    kept = read_state(file, _Kept) or _Kept()
    written = {Path(link): Path(target) for link, target in kept.links.items()}
    ours = {link: target for link, target in written.items() if _leads(link) == target}
    wanted = _wanted(stores, found)
    away = {link: target for link, target in written.items() if not _root(link).is_dir()}
    work = _Work({**ours, **away}, {Path(folder) for folder in kept.folders})
    for link, target in ours.items():
        if link not in wanted and _is_there(target):
            work.remove(link)
    missing = {
        link: target
        for link, target in wanted.items()
        if ours.get(link) != target and (link in ours or not os.path.lexists(link))
    }
    work.owned |= missing
    new = {folder for link in missing for folder in (link.parent, link.parent.parent)}
    work.folders |= {folder for folder in new if not folder.exists()}
    now = _kept(work)
    if now != kept:
        write_state(file, now)
    for link, target in missing.items():
        work.make(link, target)
    return Links(tuple(work.made), tuple(work.removed), tuple(work.problems))


def own_links(home: Path) -> frozenset[Path]:
    """The links that are swapd's."""
    kept = read_state(home / FOLDER / FILE, _Kept) or _Kept()
    return frozenset(
        Path(link) for link, to in kept.links.items() if _leads(Path(link)) == Path(to)
    )


def link_name(model: DiscoveredModel) -> Path:
    """Where a model's link stands below MODELS_DIR: a way from which its name can be read."""
    folder, _, rest = model.bare.partition(":")
    if bare_name(model.place.parent.name, model.place.name) == model.bare:
        return Path(_BELOW, folder, f"{model.place.name}.gguf")
    # Its usual name is another model's.
    return Path(_BELOW, folder, f"{folder}-{rest}.gguf")


def _wanted(stores: ModelStores, found: Iterable[DiscoveredModel]) -> dict[Path, Path]:
    """Every link that there should be, with where it should lead."""
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
    """The MODELS_DIR that a link was made in."""
    return link.parents[2]


def _leads(link: Path) -> Path | None:
    """Where a link leads; None for what is no link."""
    try:
        return link.readlink()
    except OSError:
        return None


def _is_there(blob: Path) -> bool:
    """Whether the store is there that a blob was or is in."""
    return blob.parent.is_dir() and (blob.parent.parent / "manifests").is_dir()


def _kept(work: _Work) -> _Kept:
    links = {str(link): str(target) for link, target in sorted(work.owned.items())}
    return _Kept(links, sorted(str(folder) for folder in work.folders))
