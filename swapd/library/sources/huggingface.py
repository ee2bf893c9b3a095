"""Scan the Hugging Face cache, in the layout of huggingface_hub.

    models--OWNER--REPO/blobs/ETAG              the bytes
    models--OWNER--REPO/refs/main               the commit that `main` was at the last download
    models--OWNER--REPO/snapshots/COMMIT/FILE   a link to a blob, under the file's own name

Candidates are the files of snapshots, not blobs, since the names of split models matter. A file in
several snapshots is taken from that of `main`, else from the newest. Each is also known as
`OWNER/REPO:QUANTISATION`, the usual notation for files of the hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath

from swapd.gguf.reader import split_part
from swapd.library.sources import folders
from swapd.library.sources.base import Candidate, ScanResult, SkippedFile, skip_reason

NAME = "hugging face"
QUANTISATION = re.compile(
    r"(?<![a-z0-9])((?:ud-)?i?q\d(?:_[a-z0-9]+)*|b?f16|f32|mxfp4(?:_moe)?|tq\d_\d)(?![a-z0-9])",
    re.IGNORECASE,
)
"""Quantisation in a file's name."""


def scan(root: Path) -> ScanResult:
    """Find the GGUF files of all repositories in the cache; a missing cache is empty."""
    candidates: list[Candidate] = []
    broken: list[SkippedFile] = []
    skipped: list[SkippedFile] = []
    try:
        repositories = sorted(path for path in root.iterdir() if path.name.startswith("models--"))
    except FileNotFoundError:
        return ScanResult()
    except OSError as error:
        return ScanResult(broken=(SkippedFile(root, skip_reason(root, error), NAME),))
    for repository in repositories:
        taken: dict[PurePath, Path] = {}
        for snapshot in _snapshots(repository, broken):
            scanned = folders.scan(snapshot, NAME)
            broken += scanned.broken
            for file in scanned.candidates:
                inside = PurePath(file.path.relative_to(snapshot.absolute()))
                current = taken.setdefault(inside, file.path)
                if current == file.path:
                    candidates.append(_candidate(repository, inside, file.path))
                elif os.path.realpath(file.path) != os.path.realpath(current):
                    skipped.append(
                        SkippedFile(file.path, f"is another revision of {current}", NAME)
                    )
    return ScanResult(tuple(candidates), tuple(broken), tuple(skipped))


def _snapshots(repository: Path, broken: list[SkippedFile]) -> Iterator[Path]:
    """Yield the snapshots of a repository: the one that `main` names, then the newest first."""
    main = repository / "refs" / "main"
    try:
        commit = main.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        commit = ""
    except (OSError, UnicodeDecodeError) as error:
        reason = skip_reason(main, error) if isinstance(error, OSError) else "is not text in UTF-8"
        broken.append(SkippedFile(main, reason, NAME))
        commit = ""
    try:
        found = [(path, path.stat().st_mtime_ns) for path in (repository / "snapshots").iterdir()]
    except FileNotFoundError:
        return
    except OSError as error:
        broken.append(SkippedFile(repository, skip_reason(repository, error), NAME))
        return
    found.sort(key=lambda item: (item[0].name != commit, -item[1], item[0].name))
    yield from (path for path, _ in found)


def _candidate(repository: Path, inside: PurePath, path: Path) -> Candidate:
    """Return a file of a repository as if in `OWNER/REPO/`, regardless of its subfolder."""
    _, _, full = repository.name.partition("--")
    owner, _, name = full.rpartition("--")
    part = split_part(inside.name)
    quant = QUANTISATION.findall(part.base if part is not None else inside.stem)
    known_as = f"{owner}/{name}".removeprefix("/") + (f":{quant[-1]}" if quant else "")
    place = PurePath(owner, name, inside.name)
    return Candidate(path=path, source=NAME, place=place, known_as=(known_as,), settled=True)
