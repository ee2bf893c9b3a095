"""Scan plain folders, and the demo models, for GGUF files."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

from swapd.library.sources.base import Candidate, ScanResult, SkippedFile, is_gguf, skip_reason

MAX_FOLDERS = 20_000
"""Most folders below a root; more mean that a link leads out of the folder of models."""


def scan(root: Path, source: str) -> ScanResult:
    """Find all GGUF files below the folder, through links too; skip names that begin with a dot.

    A root that does not exist is empty. The root counts as a folder in names.
    """
    files, broken = _walk(root, source)
    candidates = (
        Candidate(
            path=path.absolute(),
            source=source,
            place=root.name / PurePath(path.relative_to(root)),
            linked=path.is_symlink(),
        )
        for path in files
    )
    return ScanResult(tuple(candidates), tuple(broken))


def scan_folder(folder: Path, source: str) -> ScanResult:
    """Find the GGUF files directly in the folder, to be named by their stem, as the demo models."""
    if not folder.is_dir():
        return ScanResult()
    files = sorted(path for path in folder.absolute().iterdir() if is_gguf(path.name))
    return ScanResult(
        tuple(Candidate(path, source, PurePath(path.name), settled=True) for path in files)
    )


def _walk(root: Path, source: str) -> tuple[list[Path], list[SkippedFile]]:
    """List every file once; enter each folder once.

    Linked folders are entered after all others, so that a file reached both ways is listed under
    its own path.
    """
    files: list[Path] = []
    broken: list[SkippedFile] = []
    left = MAX_FOLDERS
    seen: set[tuple[int, int]] = set()
    pending, linked = [root], list[Path]()
    while pending or linked:
        folder = pending.pop() if pending else linked.pop(0)
        left -= 1
        if left < 0:
            broken.append(
                SkippedFile(root, f"holds more than {MAX_FOLDERS:,} folders: name fewer", source)
            )
            return files, broken
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as iterator:
                entries = sorted(iterator, key=lambda entry: entry.name)
        except FileNotFoundError:
            # The folder need not exist, and may be removed during the scan.
            continue
        except OSError as error:
            broken.append(SkippedFile(folder, skip_reason(folder, error), source))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            is_folder = _is_folder(entry)
            if is_gguf(entry.name) and not is_folder:
                files.append(Path(entry.path))
            elif is_folder:
                (linked if entry.is_symlink() else pending).append(Path(entry.path))
    return files, broken


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A circular link or a forbidden folder: reported when the file is opened.
        return False
