"""Get a model: from Ollama, from the Hugging Face hub, or from a URL."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from swapd.doors.cli.say import FailedError, command
from swapd.doors.cli.syncing import sync
from swapd.library.download import Wanted, fetch_all, need_room
from swapd.library.hub_files import PREFIXES, files_of
from swapd.paths import Home, find_home


def pull(name: str, sha256: str, assume_yes: bool) -> int:
    """Get what `name` means and sync. Raises FailedError."""
    home = find_home()
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
    report = sync(force=False)
    for model in report.added:
        print(f"try     {command()} run {model}")
    return 0


def _fetch(files: list[Wanted], folder: Path, assume_yes: bool) -> None:
    """All of it fits before any of it is begun, as far as the sizes are known."""
    if all(file.size for file in files):
        missing = sum(file.size - file.there() for file in files if not file.done)
        need_room(folder, missing, assume_yes)
        fetch_all(files, lambda _: None)
    else:
        fetch_all(files, lambda missing: need_room(folder, missing, assume_yes))


def _settings(home: Home) -> tuple[Mapping[str, str], Path]:
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


def _from_url(url: str, folder: Path, sha256: str) -> Wanted:
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
    return Wanted(url, folder.joinpath(*places, file), 0, sha256)
