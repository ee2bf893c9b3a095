"""Names for model files, by the reference's rule. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath


def bare_name(folder: str, stem: str) -> str:
    """The name of a file by its folder's name and its own, without `.gguf`.

    Lower-case; `folder:rest` when the file's name starts with the folder's, else `folder:stem`;
    anything but `a-z 0-9 - _ . :` becomes `-`. A file named exactly as its folder is `folder`.
    """
    folder, stem = clean(folder), clean(stem)
    if not folder:
        return stem
    if not stem.startswith(folder):
        return f"{folder}:{stem}"
    rest = stem[len(folder) :].lstrip("-_.: ")
    return f"{folder}:{rest}" if rest else folder


def clean(text: str) -> str:
    """The text in lower case, with `-` for every character that a name may not have."""
    return re.sub(r"[^a-z0-9\-_.:]", "-", text.lower())


def distinct_names(
    files: Iterable[tuple[PurePath, str]], taken: Iterable[str]
) -> Mapping[PurePath, str]:
    """A bare name for each file, given as path under its root and stem; no two alike.

    Of files with one name, the one whose path is shortest, then first, keeps it; another gets the
    folder above its own in front, and where that does not tell it apart either, six digits that
    depend on its path alone.
    """
    used = set(taken)
    names: dict[PurePath, str] = {}
    for path, stem in sorted(files, key=lambda item: (len(item[0].parts), str(item[0]))):
        plain = bare_name(path.parent.name, stem)
        above = clean(path.parent.parent.name)
        digest = hashlib.sha256(str(path).encode()).hexdigest()[:6]
        choices = [plain, f"{above}-{plain}" if above else plain, f"{plain}-{digest}"]
        names[path] = next(name for name in choices if name not in used)
        used.add(names[path])
    return names
