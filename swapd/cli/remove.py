"""`rm`: remove a model through its owner, and the files that belong to it alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from swapd.cli.options import Name, Yes
from swapd.cli.output import FailedError, confirm, show_bytes, waiting
from swapd.paths import Paths, find_paths

if TYPE_CHECKING:
    from swapd.config.env import ModelStores
    from swapd.library.inventory import InventoryEntry


def rm(name: Name, yes: Yes = False) -> int:
    """Remove a model from its store, and sync."""
    from swapd.cli.catalog import find_model, list_models
    from swapd.cli.sync import run_sync
    from swapd.config.env import find_stores, read_env

    paths = find_paths()
    entries = list_models(paths)
    entry = find_model(entries, name)
    _require_removable(entry, entries)
    assert entry.path is not None
    stores = find_stores(read_env(paths.folder, os.environ))
    remove: Callable[[], None]
    if entry.source == "ollama":
        tag = _ollama_tag(entry, name, stores)
        description, remove = f"{tag} from Ollama", partial(_remove_from_ollama, tag)
    else:
        files = _files(entry, entries, stores)
        description = ", ".join(str(file) for file in files)
        remove = partial(_remove_files, files, stores)
    size = show_bytes(entry.size)
    if not yes and not confirm(f"remove {entry.name} ({size}): {description}?"):
        raise FailedError("nothing was removed; --yes skips the question")
    _unload(paths, entry.name)
    remove()
    print(f"removed {entry.name}")
    run_sync(files=False)
    return 0


def _require_removable(entry: InventoryEntry, entries: list[InventoryEntry]) -> None:
    """Raise FailedError for a model without its own file, or with one that others need."""
    from swapd.library.inventory import CUSTOM, HANDWRITTEN

    if entry.source == "demo":
        raise FailedError(f"{entry.name} comes with swapd and is not removed")
    if entry.base or entry.path is None or entry.source in (HANDWRITTEN, CUSTOM):
        file = HANDWRITTEN if entry.source == HANDWRITTEN else CUSTOM
        raise FailedError(f"{entry.name} is no file of its own: remove it from {file}")
    others = [
        e.name
        for e in entries
        if e is not entry
        and e.path is not None
        and not e.broken
        and e.path.samefile(entry.path)
        # Ollama itself keeps a blob that another of its models needs.
        and (e.base or entry.source != "ollama")
    ]
    if others:
        names = ", ".join(others)
        message = f"{names} would be without a file: remove it from custom_models.yaml first"
        raise FailedError(message)


def _unload(paths: Paths, name: str) -> None:
    """Unload the model's worker, if it has one."""
    from swapd.cli.client import NoResponseError, post, running, with_model

    holder = running(paths)
    if holder is None:
        return
    try:
        with waiting(f"unloading {name}"):
            post(holder, with_model("/unload", name))
    except NoResponseError:
        # The running swapd is not configured with this model, so it has no worker of it.
        return


def _ollama_tag(entry: InventoryEntry, name: str, stores: ModelStores) -> str:
    """Return Ollama's name of the model. Raises FailedError when the model has several."""
    from swapd.library.sources import ollama

    candidates = [one for store in stores.ollama for one in ollama.scan(store).candidates]
    tags = sorted({tag for one in candidates if one.path == entry.path for tag in one.known_as})
    if name in tags:
        return name
    if len(tags) != 1:
        raise FailedError(f"Ollama has it as {', '.join(tags)}: name the one to remove")
    return tags[0]


def _remove_from_ollama(tag: str) -> None:
    if shutil.which("ollama") is None:
        raise FailedError(f"{tag} is Ollama's, and there is no ollama command to remove it with")
    done = subprocess.run(["ollama", "rm", tag], check=False)
    if done.returncode != 0:
        raise FailedError(f"ollama rm {tag} failed; its output is above")


def _files(entry: InventoryEntry, entries: list[InventoryEntry], stores: ModelStores) -> list[Path]:
    """Return the model's parts, its projector unless shared, and blobs of the hub's cache.

    Raises FailedError for a file outside of the stores.
    """
    from swapd.gguf.reader import split_parts

    assert entry.path is not None
    files = [Path(part) for part in split_parts(str(entry.path))]
    shared = {e.projector for e in entries if e is not entry}
    if entry.projector is not None and entry.projector not in shared:
        files.append(entry.projector)
    if entry.source == "hugging face":
        files += [blob for file in files if (blob := _blob(file, files)) is not None]
    for file in files:
        if _store_of(file, stores) is None:
            raise FailedError(f"{file} is outside of the folders for models; remove it yourself")
    return files


def _blob(link: Path, removed: list[Path]) -> Path | None:
    """Return the blob behind a link in the hub's cache; None while another link needs it."""
    if not link.is_symlink():
        return None
    blob = link.resolve()
    repository = next((p.parent for p in link.parents if p.name == "snapshots"), None)
    if repository is None or blob.parent != (repository / "blobs").resolve():
        return None
    for other in (repository / "snapshots").rglob("*"):
        # realpath accepts a circular link, with which `resolve` fails.
        if other.is_symlink() and other not in removed and Path(os.path.realpath(other)) == blob:
            return None
    return repository / "blobs" / blob.name


def _store_of(file: Path, stores: ModelStores) -> Path | None:
    """Return the folder for models that contains the file, links resolved; None for others."""
    folder = file.parent.resolve()
    for root in (stores.models_dir, *stores.lmstudio, *stores.hub, *stores.folders):
        if folder.is_relative_to(root.resolve()):
            return root
    return None


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _remove_files(files: list[Path], stores: ModelStores) -> None:
    """Remove the files, and the folders that are empty then, up to their store.

    A repository in the hub's cache with nothing left loses its references too.
    """
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise FailedError(f"{file} can't be removed: {error.strerror}") from error
        root = _store_of(file, stores)
        for folder in file.parents:
            if root is None or folder.resolve() == root.resolve() or not _is_empty(folder):
                break
            folder.rmdir()
    for repository in {p.parent for file in files for p in file.parents if p.name == "snapshots"}:
        if repository.is_dir() and {p.name for p in repository.iterdir()} <= {"refs", ".no_exist"}:
            shutil.rmtree(repository)
