"""Hugging Face's cache, as huggingface_hub lays it out.

    models--OWNER--REPO/blobs/ETAG              the bytes
    models--OWNER--REPO/refs/main               the commit that `main` was at the last download
    models--OWNER--REPO/snapshots/COMMIT/FILE   a link to a blob, under the file's own name

Snapshots are offered and not blobs, since the names of split models count. A file that several
snapshots have is offered from `main`'s, else from the youngest. Each is also known as
`OWNER/REPO:QUANTISATION`, the way in which files of the hub are asked for elsewhere.
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
_QUANT = re.compile(
    r"(?<![a-z0-9])((?:ud-)?i?q\d(?:_[a-z0-9]+)*|b?f16|f32|mxfp4(?:_moe)?|tq\d_\d)(?![a-z0-9])",
    re.IGNORECASE,
)
"""How file names say which quantisation they hold."""


def scan(root: Path) -> ScanResult:
    """The GGUF files of all repositories in the cache; a cache that does not exist holds none."""
    offers: list[Candidate] = []
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
            looked = folders.scan(snapshot, NAME)
            broken += looked.broken
            for offer in looked.offers:
                inside = PurePath(offer.path.relative_to(snapshot.absolute()))
                current = taken.setdefault(inside, offer.path)
                if current == offer.path:
                    offers.append(_offer(repository, inside, offer.path))
                elif os.path.realpath(offer.path) != os.path.realpath(current):
                    skipped.append(
                        SkippedFile(offer.path, f"is another revision of {current}", NAME)
                    )
    return ScanResult(tuple(offers), tuple(broken), tuple(skipped))


def _snapshots(repository: Path, broken: list[SkippedFile]) -> Iterator[Path]:
    """The snapshots of a repository, the one that `main` names first, then the youngest."""
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


def _offer(repository: Path, inside: PurePath, path: Path) -> Candidate:
    """A file of a repository, as if it lay in `OWNER/REPO/`, whatever folder it has in there."""
    _, _, full = repository.name.partition("--")
    owner, _, name = full.rpartition("--")
    part = split_part(inside.name)
    quant = _QUANT.findall(part.base if part is not None else inside.stem)
    known_as = f"{owner}/{name}".removeprefix("/") + (f":{quant[-1]}" if quant else "")
    place = PurePath(owner, name, inside.name)
    return Candidate(path=path, source=NAME, place=place, also=(known_as,), settled=True)
