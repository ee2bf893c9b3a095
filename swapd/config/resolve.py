"""Which model a name means, however it is spelled. Pure; knows nothing but the words.

An exact name or alias always wins and costs two look-ups. Only where there is none, spellings are
compared: capitals, `-` for `:` and `/`, an ending `.gguf`, an untagged name for `:latest`, a name
with or without prefix. What more than one model could mean is nobody's: the answer lists them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from swapd.words.catalog import Catalog, ModelSpec

PREFIX = "ls/"
"""The prefix that people know from the reference, accepted also where no model has it."""
_LONGEST = 512
"""Characters; a longer text is no name, and comparing it would only cost time."""
_HUBS = ("hf:", "hf.co/", "huggingface.co/")


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """A name that could mean any of several models."""

    name: str
    candidates: tuple[str, ...]
    """Names of models, sorted."""

    def __str__(self) -> str:
        """One sentence for whoever asked."""
        return f"{self.name} could mean any of {', '.join(self.candidates)}; say which"


def resolve(name: str, catalog: Catalog, prefix: str = PREFIX) -> ModelSpec | Ambiguous | None:
    """The model that `name` means, or the several that it could mean, or None.

    For a name that is not exact this looks at every model; who resolves many such names against one
    catalog keeps a `Spellings` of it.
    """
    exact = catalog.resolve(name)
    if exact is not None:
        return exact
    names = {model.name: model.aliases for model in catalog.models.values()}
    found = Spellings(names, prefix).find(name)
    return catalog.models[found] if isinstance(found, str) else found


class Spellings:
    """An index over names and aliases for look-ups by another spelling."""

    def __init__(self, names: Mapping[str, Iterable[str]], prefix: str = PREFIX) -> None:
        self._whole: dict[str, set[str]] = {}
        self._bare: dict[str, set[str]] = {}
        self._family: dict[str, set[str]] = {}
        self._file: dict[str, set[str]] = {}
        first = {name.lower().partition("/")[0] + "/" for name in names if "/" in name}
        self._prefixes = tuple(sorted(first | ({prefix.lower()} if prefix else set())))
        for name, aliases in names.items():
            for spelling in (name, *aliases):
                self._add(name, spelling)

    def find(self, asked: str) -> str | Ambiguous | None:
        """The name of the model that `asked` means, or the several, or None.

        A text that climbs out of folders or starts at a root is no model's name, whatever it would
        be when simplified.
        """
        if not _is_name(asked):
            return None
        text = _plain(asked)
        ways = dict.fromkeys((text, self._without_prefix(text)))
        steps = [(self._whole, ways), (self._bare, ways)]
        if ":" not in asked:
            steps.append((self._family, ways))
        if asked.strip().lower().endswith(".gguf"):
            steps.append((self._file, ways))
        for index, texts in steps:
            for way in texts:
                hits = sorted(index.get(_folded(way), ()))
                if hits:
                    return hits[0] if len(hits) == 1 else Ambiguous(asked.strip(), tuple(hits))
        return None

    def _add(self, name: str, spelling: str) -> None:
        text = _plain(spelling)
        self._whole.setdefault(_folded(text), set()).add(name)
        bare = self._without_prefix(text)
        self._bare.setdefault(_folded(bare), set()).add(name)
        family, colon, file = bare.partition(":")
        if colon:
            self._family.setdefault(_folded(family), set()).add(name)
            self._file.setdefault(_folded(file), set()).add(name)

    def _without_prefix(self, text: str) -> str:
        prefix = next((p for p in self._prefixes if text.startswith(p)), "")
        return text[len(prefix) :]


def _is_name(asked: str) -> bool:
    if not asked.strip() or len(asked) > _LONGEST or asked.lstrip().startswith(("/", "\\", "~")):
        return False
    if not asked.strip().isprintable() or not re.search("[A-Za-z0-9]", asked):
        # Without a letter that names may have, any name of the same length would do.
        return False
    return ".." not in re.split(r"[/\\]", asked.strip())


def _plain(text: str) -> str:
    """Lower case, composed, without what says nothing: `.gguf`, `:latest`, a hub's own prefix."""
    text = unicodedata.normalize("NFC", text).strip().lower().removesuffix(".gguf")
    for hub in _HUBS:
        text = text.removeprefix(hub)
    return text.removesuffix(":latest")


def _folded(text: str) -> str:
    """What two spellings of one name have in common: everything else that a name can't hold is `-`.

    The same rule by which names are made of file names, and `:` and `/` as `-` too.
    """
    return re.sub(r"[^a-z0-9\-_.]", "-", text)
