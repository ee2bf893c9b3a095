"""Get a model: from Ollama, from the Hugging Face hub, or from a URL.

Take a model away, through whoever it belongs to.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from swapd.cli.client import NoAnswerError, named, post, running
from swapd.cli.config import find, models
from swapd.cli.output import FailedError, command, confirm, show_bytes, waiting
from swapd.cli.sync import sync_models
from swapd.library.download import Download, fetch_all, need_room
from swapd.library.hub_files import PREFIXES, files_of
from swapd.paths import Paths, find_paths

if TYPE_CHECKING:
    from swapd.config.env import ModelStores
    from swapd.library.inventory import InventoryEntry


def pull(name: str, sha256: str, assume_yes: bool) -> int:
    """Get what `name` means and sync. Raises FailedError."""
    home = find_paths()
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise FailedError("a SHA-256 sum has 64 hexadecimal digits", 2)
    url = name.startswith(("http://", "https://"))
    prefix = next((p for p in PREFIXES if name.startswith(p)), "")
    if sha256 and not url:
        raise FailedError("--sha256 is for a URL; elsewhere the sum is known", 2)
    if not url and not prefix:
        _from_ollama(name)
    else:
        env, folder = _settings(home)
        if url:
            files = [_from_url(name, folder, sha256)]
        else:
            files = files_of(name.removeprefix(prefix), folder, env)
        _fetch(files, folder, assume_yes)
    report = sync_models(force=False)
    for model in report.added:
        print(f"try     {command()} run {model}")
    return 0


def _fetch(files: list[Download], folder: Path, assume_yes: bool) -> None:
    """All of it fits before any of it is begun, as far as the sizes are known."""
    if all(file.size for file in files):
        missing = sum(file.size - file.there() for file in files if not file.done)
        need_room(folder, missing, assume_yes)
        fetch_all(files, lambda _: None)
    else:
        fetch_all(files, lambda missing: need_room(folder, missing, assume_yes))


def _settings(home: Paths) -> tuple[Mapping[str, str], Path]:
    """The environment, and where files go."""
    from swapd.config.env import find_stores, read_env
    from swapd.config.errors import ConfigError

    try:
        env = read_env(home.folder, os.environ)
    except ConfigError as error:
        raise FailedError(str(error)) from error
    return env, find_stores(env).models_dir


def _from_ollama(name: str) -> None:
    """Ollama gets its own models, into its own store."""
    if name.startswith("-") or not name.strip():
        raise FailedError(f"{name!r} is no name of a model")
    if "://" in name:
        raise FailedError(f"{name} can't be fetched: an address begins with https:// or http://")
    if shutil.which("ollama") is None:
        message = f"{name} would come from Ollama, and there is no ollama command here"
        raise FailedError(f"{message}; install it, or give hf:owner/repo or a URL")
    done = subprocess.run(["ollama", "pull", name], check=False)
    if done.returncode != 0:
        raise FailedError(f"ollama pull {name} failed; what it says stands above")


def _from_url(url: str, folder: Path, sha256: str) -> Download:
    """To OWNER/REPO where the address looks like the hub's, else to HOST/STEM, in MODELS_DIR."""
    at = urlsplit(url)
    steps = [unquote(step) for step in at.path.split("/") if step]
    file = PurePosixPath(steps[-1]).name if steps else ""
    if not file.lower().endswith(".gguf") or file.startswith("."):
        raise FailedError(f"{url} does not name a GGUF file: its path must end in .gguf")
    if len(steps) >= 5 and steps[2] in ("resolve", "blob"):
        owner, repo = steps[0], steps[1]
        url = url.replace("/blob/", "/resolve/", 1) if steps[2] == "blob" else url
    else:
        owner, repo = at.hostname or "", PurePosixPath(file).stem
    places = [re.sub(r"[^\w.-]|^\.+", "-", place) for place in (owner, repo)]
    return Download(url, folder.joinpath(*places, file), 0, sha256)


def remove(name: str, assume_yes: bool) -> int:
    """Ask, remove the model's files and sync. Raises FailedError."""
    home = find_paths()
    entries = models(home)
    entry = find(entries, name)
    _must_be_free(entry, entries)
    assert entry.path is not None
    stores = _stores(home)
    doing: Callable[[], None]
    if entry.source == "ollama":
        tag = _tag(entry, name, stores)
        what, doing = f"{tag} from Ollama", partial(_through_ollama, tag)
    else:
        files = _files(entry, entries, stores)
        what, doing = ", ".join(str(file) for file in files), partial(_unlink, files, stores)
    if not assume_yes and not confirm(f"remove {entry.name} ({show_bytes(entry.size)}): {what}?"):
        raise FailedError("nothing was removed; --yes does not ask")
    _unload(home, entry.name)
    doing()
    print(f"removed {entry.name}")
    sync_models(force=False, files=False)
    return 0


def _must_be_free(entry: InventoryEntry, entries: list[InventoryEntry]) -> None:
    """Raises FailedError for what is not a file of its own, or is needed by another model."""
    if entry.source == "demo":
        raise FailedError(f"{entry.name} comes with swapd and is not removed")
    from swapd.library.inventory import CUSTOM, WRITTEN

    if entry.base or entry.path is None or entry.source in (WRITTEN, CUSTOM):
        file = WRITTEN if entry.source == WRITTEN else CUSTOM
        raise FailedError(f"{entry.name} is no file of its own: take it out of {file}")
    others = [
        e.name
        for e in entries
        if e is not entry
        and e.path is not None
        and not e.broken
        and e.path.samefile(entry.path)
        # Ollama itself keeps what another of its models needs.
        and (e.base or entry.source != "ollama")
    ]
    if others:
        message = f"{', '.join(others)} would be without a file: take it out of custom_models.yaml"
        raise FailedError(f"{message} first")


def _stores(home: Paths) -> ModelStores:
    from swapd.config.env import find_stores, read_env

    return find_stores(read_env(home.folder, os.environ))


def _unload(home: Paths, name: str) -> None:
    """Let its worker go, where there is one."""
    holder = running(home)
    if holder is None:
        return
    try:
        with waiting(f"unloading {name}"):
            post(holder, named("/unload", name))
    except NoAnswerError:
        # It is not configured there, so nothing of it runs.
        return


# -- Ollama's ------------------------------------------------------------------------------------


def _tag(entry: InventoryEntry, name: str, stores: ModelStores) -> str:
    """Ollama's own name of the model. Raises FailedError when several of its names mean it."""
    from swapd.library.sources import ollama

    offers = [offer for store in stores.ollama for offer in ollama.scan(store).offers]
    tags = sorted({t for offer in offers if offer.path == entry.path for t in offer.also})
    if name in tags:
        return name
    if len(tags) != 1:
        raise FailedError(f"Ollama has it as {', '.join(tags)}: say which of them to remove")
    return tags[0]


def _through_ollama(tag: str) -> None:
    if shutil.which("ollama") is None:
        raise FailedError(f"{tag} is Ollama's, and there is no ollama command to remove it with")
    done = subprocess.run(["ollama", "rm", tag], check=False)
    if done.returncode != 0:
        raise FailedError(f"ollama rm {tag} failed; what it says stands above")


# -- files ---------------------------------------------------------------------------------------


def _files(entry: InventoryEntry, entries: list[InventoryEntry], stores: ModelStores) -> list[Path]:
    """The model's parts, its projector if it has that for itself, and in the hub's cache the blobs.

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
            raise FailedError(f"{file} lies outside of the folders for models; remove it yourself")
    return files


def _blob(link: Path, going: list[Path]) -> Path | None:
    """What the hub's cache keeps behind a link; None while another link needs it."""
    if not link.is_symlink():
        return None
    blob = link.resolve()
    repository = next((p.parent for p in link.parents if p.name == "snapshots"), None)
    if repository is None or blob.parent != (repository / "blobs").resolve():
        return None
    for other in (repository / "snapshots").rglob("*"):
        # A link that leads in a circle is nobody's; `resolve` would stumble over it.
        if other.is_symlink() and other not in going and Path(os.path.realpath(other)) == blob:
            return None
    return repository / "blobs" / blob.name


def _store_of(file: Path, stores: ModelStores) -> Path | None:
    """The folder for models that the file lies in, whatever links lead there; None for others."""
    place = file.parent.resolve()
    for root in (stores.models_dir, *stores.lmstudio, *stores.hub, *stores.folders):
        if place.is_relative_to(root.resolve()):
            return root
    return None


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _unlink(files: list[Path], stores: ModelStores) -> None:
    """Remove the files, and the folders that are empty then, up to their store.

    Of a repository in the hub's cache with nothing left in it, the references go too.
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
