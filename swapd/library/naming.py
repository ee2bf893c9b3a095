"""Names for model files, by the reference's rule. Pure."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    """The text in lower case, with `-` for every character that a name may not have.

    Composed first, so that a file has one name whether its system writes ü as one sign or as two.
    """
    return re.sub(r"[^a-z0-9\-_.:]", "-", unicodedata.normalize("NFC", text).lower())


@dataclass(frozen=True, slots=True)
class NamedModel:
    """What a file's name is made of."""

    key: str
    """Tells it from all others; by it, its name is remembered."""
    place: PurePath
    """Folders and file under the root of its source."""
    stem: str
    """The file's name without `.gguf`, and without the number of a part."""
    apart: str = ""
    """The name to have when the rule's is taken; empty: one with the folder above in front."""

    @property
    def plain(self) -> str:
        """The name by the rule."""
        return bare_name(self.place.parent.name, self.stem)

    @property
    def choices(self) -> tuple[str, ...]:
        """Names that it may have, the best first; the last is nobody else's."""
        above = clean(self.place.parent.parent.name)
        apart = self.apart or (f"{above}-{self.plain}" if above else self.plain)
        digests = (
            hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
            for text in (str(self.place), self.key)
        )
        return self.plain, apart, *(f"{self.plain}-{digest[:6]}" for digest in digests)


def distinct_names(
    files: Sequence[NamedModel], taken: Iterable[str], before: Mapping[str, str]
) -> Mapping[str, str]:
    """A bare name for each file, by its key; no two alike.

    A file keeps the name that it had `before`, so that one that comes or goes never changes what
    another's name means. Of the others with one name, the first in the list keeps it; the next gets
    its second choice, and where that does not tell it apart either, six digits.
    """
    used = set(taken)
    names: dict[str, str] = {}
    for file in files:
        had = before.get(file.key)
        if had and had not in used and (had == file.plain or had in file.choices):
            names[file.key] = had
            used.add(had)
    for file in files:
        if file.key not in names:
            names[file.key] = next(name for name in file.choices if name not in used)
            used.add(names[file.key])
    return names
