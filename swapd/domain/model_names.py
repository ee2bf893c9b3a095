"""Which model a name means, however it is spelled. Pure; knows nothing but the words.

An exact name or alias always wins and costs two look-ups. Only where there is none, spellings are
compared: capitals, `-` for `:` and `/`, an ending `.gguf`, an untagged name for `:latest`, a name
with or without prefix. What more than one model could mean is nobody's: the answer lists them.

Which model a client means, and what it is told when there is none such.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from swapd.domain.models import Catalog, ModelSpec

PREFIX = "ls/"
"""The prefix that people know from the reference, accepted also where no model has it."""
_LONGEST = 512
"""Characters; a longer text is no name, and comparing it would only cost time."""
_HUBS = ("hf:", "hf.co/", "huggingface.co/")


@dataclass(frozen=True, slots=True)
class AmbiguousName:
    """A name that could mean any of several models."""

    name: str
    candidates: tuple[str, ...]
    """Names of models, sorted."""

    def __str__(self) -> str:
        """One sentence for whoever asked."""
        return f"{self.name} could mean any of {', '.join(self.candidates)}; say which"


def resolve(name: str, catalog: Catalog, prefix: str = PREFIX) -> ModelSpec | AmbiguousName | None:
    """The model that `name` means, or the several that it could mean, or None.

    For a name that is not exact this looks at every model; who resolves many such names against one
    catalog keeps a `SpellingIndex` of it.
    """
    exact = catalog.resolve(name)
    if exact is not None:
        return exact
    names = {model.name: model.presentation.aliases for model in catalog.models.values()}
    found = SpellingIndex(names, prefix).find(name)
    return catalog.models[found] if isinstance(found, str) else found


class SpellingIndex:
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

    def find(self, asked: str) -> str | AmbiguousName | None:
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
                    return hits[0] if len(hits) == 1 else AmbiguousName(asked.strip(), tuple(hits))
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


NAMES_TOLD = 20
LONGEST_SHOWN = 80
"""Characters of a name that there is not, as it is told to its client."""


class ModelNotFoundError(Exception):
    """A name means no model, or could mean several; the message is for the client."""


class ModelNames:
    """Finds models by name in one catalog. Exact names cost a look-up; other spellings an index,
    which is made when the first of them comes."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._spellings: SpellingIndex | None = None

    def find(self, name: str) -> ModelSpec:
        """The model that `name` means: exactly, with an adapter behind a colon, or by spelling."""
        spec = self.catalog.resolve(name) or self._with_adapter(name)
        if spec is not None:
            return spec
        found = self._index().find(name)
        if isinstance(found, str):
            return self.catalog.models[found]
        base = self._index().find(name.rpartition(":")[0])
        if isinstance(base, str) and adapter_in(self.catalog.models[base], name) is not None:
            return self.catalog.models[base]
        raise ModelNotFoundError(
            str(found) if isinstance(found, AmbiguousName) else self.unknown(name)
        )

    def _with_adapter(self, name: str) -> ModelSpec | None:
        spec = self.catalog.resolve(name.rpartition(":")[0])
        return spec if spec is not None and adapter_in(spec, name) is not None else None

    def _index(self) -> SpellingIndex:
        if self._spellings is None:
            names = {m.name: m.presentation.aliases for m in self.catalog.models.values()}
            self._spellings = SpellingIndex(names)
        return self._spellings

    def unknown(self, name: str) -> str:
        """There is no such model; the nearest name, and those that there are."""
        if len(name) > LONGEST_SHOWN:
            name = name[:LONGEST_SHOWN] + "…"
        names = sorted(m.name for m in self.catalog.models.values() if not m.presentation.unlisted)
        if not names:
            return f"there is no model {name!r}: none is configured"
        specs = self.catalog.models.values()
        told = [
            f"{m.name}:{a}" for m in specs if not m.presentation.unlisted for a in adapters_of(m)
        ]
        near = difflib.get_close_matches(name, [*names, *told], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        more = len(names) - NAMES_TOLD
        shown = ", ".join(names[:NAMES_TOLD]) + (f" and {more} more" if more > 0 else "")
        return f"there is no model {name!r}{hint}; there are: {shown}"


def adapters_of(spec: ModelSpec) -> list[str]:
    """The adapters that a request for this model may ask for, as `NAME:ADAPTER`."""
    named = spec.presentation.metadata.get("adapters")
    return [str(name) for name in named] if isinstance(named, list | tuple) else []


def adapter_in(spec: ModelSpec, name: str) -> str | None:
    """The adapter of this model that stands behind the last colon of `name`, capitals aside."""
    asked = name.rpartition(":")[2]
    known = adapters_of(spec)
    if asked in known:
        return asked
    alike = [adapter for adapter in known if adapter.lower() == asked.lower()]
    return alike[0] if len(alike) == 1 else None
