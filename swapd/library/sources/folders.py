"""Plain folders, and the demo models: every GGUF file is offered, by where it lies."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

from swapd.library.sources.base import Candidate, ScanResult, SkippedFile, is_gguf, skip_reason

FOLDERS = 20_000
"""Folders below one; where there are more, a link leads to what is no folder of models."""


def scan(root: Path, source: str) -> ScanResult:
    """All GGUF files below the folder, through links too; what begins with a dot is left alone.

    A root that does not exist holds nothing. The root is a folder like any other in names.
    """
    files, broken = _walk(root, source)
    offers = (
        Candidate(
            path=path.absolute(),
            source=source,
            place=root.name / PurePath(path.relative_to(root)),
            linked=path.is_symlink(),
        )
        for path in files
    )
    return ScanResult(tuple(offers), tuple(broken))


def scan_folder(folder: Path, source: str) -> ScanResult:
    """The GGUF files in the folder itself, named by themselves alone, such as the demo models."""
    if not folder.is_dir():
        return ScanResult()
    files = sorted(path for path in folder.absolute().iterdir() if is_gguf(path.name))
    return ScanResult(
        tuple(Candidate(path, source, PurePath(path.name), settled=True) for path in files)
    )


def _walk(root: Path, source: str) -> tuple[list[Path], list[SkippedFile]]:
    """Every file once, each folder once.

    Linked folders are entered after all others, so that what is reached both ways is found at its
    own place.
    """
    files: list[Path] = []
    broken: list[SkippedFile] = []
    left = FOLDERS
    seen: set[tuple[int, int]] = set()
    waiting, linked = [root], list[Path]()
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        left -= 1
        if left < 0:
            broken.append(
                SkippedFile(root, f"holds more than {FOLDERS:,} folders: name fewer", source)
            )
            return files, broken
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except FileNotFoundError:
            # Nobody has to have a folder of models, and one may go while we look.
            continue
        except OSError as error:
            broken.append(SkippedFile(folder, skip_reason(folder, error), source))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            folder_too = _is_folder(entry)
            if is_gguf(entry.name) and not folder_too:
                files.append(Path(entry.path))
            elif folder_too:
                (linked if entry.is_symlink() else waiting).append(Path(entry.path))
    return files, broken


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that leads in a circle, or to where we may not look: said when it is opened.
        return False
