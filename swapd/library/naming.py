"""Derive model names from file paths, by the rule of the reference implementation. Pure."""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath


@functools.lru_cache(maxsize=4096)
def bare_name(folder: str, stem: str) -> str:
    """Return the name of a file by its folder's name and its own, without `.gguf`.

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


@functools.lru_cache(maxsize=4096)
def clean(text: str) -> str:
    """Lower-case the text and replace every character that a name may not have by `-`.

    Composed first, so that a file has one name whether its system stores ü as one character or two.
    """
    return re.sub(r"[^a-z0-9\-_.:]", "-", unicodedata.normalize("NFC", text).lower())


@dataclass(frozen=True, slots=True)
class NamedModel:
    """Parts of a file's path that its name is derived from."""

    key: str
    """Unique key under which its name is stored."""
    place: PurePath
    """Folders and file below the root of its source."""
    stem: str
    """File name without `.gguf` and without the number of a part."""
    fallback: str = ""
    """Name used when the rule's is taken; empty: the rule's with the parent folder in front."""

    @property
    def default(self) -> str:
        """Name by the rule."""
        return bare_name(self.place.parent.name, self.stem)

    @property
    def choices(self) -> tuple[str, ...]:
        """Possible names, the best first; the last is unique."""
        above = clean(self.place.parent.parent.name)
        fallback = self.fallback or (f"{above}-{self.default}" if above else self.default)
        digests = (
            hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
            for text in (str(self.place), self.key)
        )
        return self.default, fallback, *(f"{self.default}-{digest[:6]}" for digest in digests)


def distinct_names(
    files: Sequence[NamedModel], taken: Iterable[str], previous: Mapping[str, str]
) -> Mapping[str, str]:
    """Return a unique bare name for each file, by its key.

    A file keeps its `previous` name, so that adding or removing a file never changes the meaning
    of another's name. Of the others with the same name, the first in the list keeps it; the next
    gets its second choice, or, where that is taken too, six digits of a hash.
    """
    used = set(taken)
    names: dict[str, str] = {}
    for file in files:
        name = previous.get(file.key)
        if name and name not in used and (name == file.default or name in file.choices):
            names[file.key] = name
            used.add(name)
    for file in files:
        if file.key not in names:
            names[file.key] = next(choice for choice in file.choices if choice not in used)
            used.add(names[file.key])
    return names
