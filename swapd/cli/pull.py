"""`pull`: download a model from Ollama, the Hugging Face hub or a URL."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

import typer

from swapd.cli.options import Yes
from swapd.cli.output import (
    FailedError,
    command,
    confirm,
    is_interactive,
    show_bytes,
    table,
    waiting,
)
from swapd.paths import Paths, find_paths

if TYPE_CHECKING:
    from swapd.library.download import Download
    from swapd.library.hub_files import HubRepository, Quantisation


def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="hf:owner/repo[:quant], a URL, or a name in Ollama's library."
        ),
    ],
    sha256: Annotated[str, typer.Option(help="Expected SHA-256 sum of a URL's file.")] = "",
    yes: Yes = False,
) -> int:
    """Download a model and sync; resumes a broken download."""
    from swapd.cli.sync import run_sync
    from swapd.library.download import DownloadError
    from swapd.library.hub_files import PREFIXES

    paths = find_paths()
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise FailedError("a SHA-256 sum has 64 hexadecimal digits", 2)
    url = name.startswith(("http://", "https://"))
    prefix = next((p for p in PREFIXES if name.startswith(p)), "")
    if sha256 and not url:
        raise FailedError("--sha256 is for a URL; other sources state the sum themselves", 2)
    if not url and not prefix:
        _pull_from_ollama(name)
    else:
        env, folder = _settings(paths)
        try:
            if url:
                files = [_download_of(name, folder, sha256)]
            else:
                files = _choose_files(name.removeprefix(prefix), folder, env)
            _download_all(files, folder, yes)
        except DownloadError as error:
            raise FailedError(str(error)) from error
    report = run_sync()
    for model in report.added:
        print(f"try     {command()} run {model}")
    return 0


def _settings(paths: Paths) -> tuple[Mapping[str, str], Path]:
    """Return the environment, and the folder for downloads."""
    from swapd.config.env import find_stores, read_env
    from swapd.config.errors import ConfigError

    try:
        env = read_env(paths.folder, os.environ)
    except ConfigError as error:
        raise FailedError(str(error)) from error
    return env, find_stores(env).models_dir


def _pull_from_ollama(name: str) -> None:
    """Let Ollama download a model into its own store."""
    if name.startswith("-") or not name.strip():
        raise FailedError(f"{name!r} is no name of a model")
    if "://" in name:
        raise FailedError(f"{name} can't be fetched: an address begins with https:// or http://")
    if shutil.which("ollama") is None:
        message = f"{name} would come from Ollama, and there is no ollama command here"
        raise FailedError(f"{message}; install it, or give hf:owner/repo or a URL")
    done = subprocess.run(["ollama", "pull", name], check=False)
    if done.returncode != 0:
        raise FailedError(f"ollama pull {name} failed; its output is above")


def _download_of(url: str, folder: Path, sha256: str) -> Download:
    """Return the download of a URL to OWNER/REPO for the hub's addresses, else to HOST/STEM."""
    from swapd.library.download import Download

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
    parents = [re.sub(r"[^\w.-]|^\.+", "-", parent) for parent in (owner, repo)]
    return Download(url, folder.joinpath(*parents, file), 0, sha256)


def _choose_files(reference: str, folder: Path, env: Mapping[str, str]) -> list[Download]:
    """Return the files of `owner/repo[:quant]`, with the model's projector if it has one."""
    from swapd.library.hub_files import parse_reference, read_repository

    repo, label = parse_reference(reference)
    with waiting(f"reading {repo} from the hub"):
        repository = read_repository(repo, folder, env)
    chosen = repository.find(label) if label else _choose(repository)
    projector = repository.projector_for(chosen)
    if projector is None:
        return list(chosen.files)
    size = show_bytes(projector.size)
    print(f"with    {projector.target.name}, the projector that belongs to it ({size})")
    return [*chosen.files, projector]


def _choose(repository: HubRepository) -> Quantisation:
    """Return the only quantisation, or ask at the terminal. Raises FailedError without one."""
    found = repository.quantisations
    if len(found) == 1:
        return found[0]
    rows = [[str(i), one.label, show_bytes(one.size)] for i, one in enumerate(found, 1)]
    listed = "\n".join(table(["", "QUANT", ">SIZE"], rows))
    repo, default = repository.name, repository.default
    if not is_interactive():
        message = f"{repo} has several; choose one, such as hf:{repo}:{default}"
        raise FailedError(f"{message}\n{listed}")
    print(listed, file=sys.stderr)
    print(f"Which one? [{default}] ", end="", file=sys.stderr, flush=True)
    reply = sys.stdin.readline().strip() or default
    if reply.isdigit() and 1 <= int(reply) <= len(found):
        return found[int(reply) - 1]
    return repository.find(reply)


def _require_space(folder: Path, missing: int, assume_yes: bool) -> None:
    """Ask before a download that the disk can't hold. Raises FailedError on a no."""
    parent = next(p for p in (folder, *folder.parents) if p.is_dir())
    free = shutil.disk_usage(parent).free
    if missing <= free or assume_yes:
        return
    message = f"the download needs {show_bytes(missing)} and {parent} has"
    message += f" {show_bytes(free) or 'nothing'} free"
    if not confirm(f"{message}: begin all the same?"):
        raise FailedError(f"{message}; free some space, or use --yes")


class _Observer:
    """Progress of one download at the terminal."""

    def __init__(
        self,
        download: Download,
        check_space: Callable[[int], None],
        update: Callable[[int, int], None],
    ) -> None:
        self._name = download.target.name
        self.check_space = check_space
        self.update = update

    def verifying(self) -> AbstractContextManager[None]:
        """Show a spinner while the checksum is computed."""
        return waiting(f"checking {self._name}")


def _download_all(files: list[Download], folder: Path, assume_yes: bool) -> None:
    """Download the files one after the other, with progress bars at a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from swapd.library.download import fetch

    # With all sizes known, all must fit before the first begins; else each is checked alone.
    sizes_known = all(file.size for file in files)
    if sizes_known:
        missing = sum(file.size - file.received() for file in files if not file.done)
        _require_space(folder, missing, assume_yes)

    def check_space(missing: int) -> None:
        if not sizes_known:
            _require_space(folder, missing, assume_yes)

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    disabled = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=disabled) as progress:
        for file in files:
            if file.done:
                print(f"there already  {file.target}")
                continue
            task = progress.add_task(file.target.name, total=file.size or None)

            def update(received: int, total: int, task: object = task) -> None:
                progress.update(task, completed=received, total=total or None)  # type: ignore[arg-type]

            fetch(file, _Observer(file, check_space, update))
            print(f"fetched  {file.target}")
