"""Resolve the model name of a client: exact name, alias, adapter, or another spelling.

An exact name or alias always wins and costs two dictionary look-ups. Only without an exact match
are spellings compared: letter case, `-` in place of `:` and `/`, a suffix `.gguf`, an untagged name
for `:latest`, and names with or without a prefix. A spelling that matches more than one model is
ambiguous: the error lists the candidates.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from swapd.domain.models import Catalog, ModelSpec

PREFIX = "ls/"
"""Default prefix of generated model names, accepted also if no model has it."""
MAX_NAME_LENGTH = 512
"""Characters; longer texts match no model, because comparing them would only cost time."""
MAX_LISTED = 20
"""Names of models in an error message."""
MAX_QUOTED_LENGTH = 80
"""Characters of an unknown name that an error message quotes."""
_HUB_PREFIXES = ("hf:", "hf.co/", "huggingface.co/")


@dataclass(frozen=True, slots=True)
class AmbiguousName:
    """A name that matches several models."""

    name: str
    candidates: tuple[str, ...]
    """Names of the models, sorted."""

    def __str__(self) -> str:
        """Return the error message for the client."""
        return f"{self.name} could mean any of {', '.join(self.candidates)}; say which"


class ModelNotFoundError(Exception):
    """A name matches no model, or several; the message is for the client."""


class SpellingIndex:
    """An index over names and aliases for look-ups by another spelling."""

    def __init__(self, names: Mapping[str, Iterable[str]], prefix: str = PREFIX) -> None:
        self._whole: dict[str, set[str]] = {}
        self._unprefixed: dict[str, set[str]] = {}
        self._family: dict[str, set[str]] = {}
        self._file: dict[str, set[str]] = {}
        first = {name.lower().partition("/")[0] + "/" for name in names if "/" in name}
        self._prefixes = tuple(sorted(first | ({prefix.lower()} if prefix else set())))
        for name, aliases in names.items():
            for spelling in (name, *aliases):
                self._add(name, spelling)

    def find(self, name: str) -> str | AmbiguousName | None:
        """Return the name of the model that `name` spells, the several candidates, or None.

        A text with `..` segments or a leading root is no model's name, whatever its normal form
        would be.
        """
        if not _may_be_name(name):
            return None
        text = _normalized(name)
        variants = dict.fromkeys((text, self._without_prefix(text)))
        indices = [self._whole, self._unprefixed]
        if ":" not in name:
            indices.append(self._family)
        if name.strip().lower().endswith(".gguf"):
            indices.append(self._file)
        # The first index with a match decides: later ones compare less of the name.
        for index in indices:
            for variant in variants:
                matches = sorted(index.get(_folded(variant), ()))
                if matches:
                    if len(matches) == 1:
                        return matches[0]
                    return AmbiguousName(name.strip(), tuple(matches))
        return None

    def _add(self, name: str, spelling: str) -> None:
        text = _normalized(spelling)
        self._whole.setdefault(_folded(text), set()).add(name)
        unprefixed = self._without_prefix(text)
        self._unprefixed.setdefault(_folded(unprefixed), set()).add(name)
        family, colon, file = unprefixed.partition(":")
        if colon:
            self._family.setdefault(_folded(family), set()).add(name)
            self._file.setdefault(_folded(file), set()).add(name)

    def _without_prefix(self, text: str) -> str:
        prefix = next((p for p in self._prefixes if text.startswith(p)), "")
        return text[len(prefix) :]


class ModelNames:
    """The names of one catalog's models.

    The index over spellings is built when the first name without an exact match is looked up.
    """

    def __init__(self, catalog: Catalog, prefix: str = PREFIX) -> None:
        self.catalog = catalog
        self._prefix = prefix
        self._spellings: SpellingIndex | None = None
        self._segments = 0
        """Segments of the name with the most of them; 0 until it is needed."""

    def find(self, name: str) -> ModelSpec:
        """Return the model that `name` means. Raises ModelNotFoundError."""
        found = self.lookup(name)
        if isinstance(found, ModelSpec):
            return found
        raise ModelNotFoundError(self.unknown(name) if found is None else str(found))

    def lookup(self, name: str) -> ModelSpec | AmbiguousName | None:
        """Return the model that `name` means, the several candidates, or None."""
        # 1. An exact name or alias, also with an adapter behind a colon.
        spec = self.catalog.resolve(name) or self._exact_with_adapter(name)
        if spec is not None:
            return spec
        # 2. Another spelling of the whole name.
        index = self._index()
        found = index.find(name)
        if isinstance(found, str):
            return self.catalog.models[found]
        # 3. Another spelling of the part before an adapter.
        base = index.find(name.rpartition(":")[0])
        if isinstance(base, str) and requested_adapter(self.catalog.models[base], name) is not None:
            return self.catalog.models[base]
        return found

    def find_in_path(self, segments: Sequence[str]) -> tuple[ModelSpec, int]:
        """Return the model that the first path segments name, and the number of these segments.

        Names may contain slashes, so the longest exact match wins; another spelling is accepted for
        the first segment alone. Raises ModelNotFoundError.
        """
        for count in range(min(len(segments), self._max_segments()), 0, -1):
            spec = self.catalog.resolve("/".join(segments[:count]))
            if spec is not None:
                return spec, count
        return self.find(segments[0]), 1

    def _max_segments(self) -> int:
        """Return the most segments of a name; longer beginnings of a path need no lookup."""
        if self._segments == 0:
            specs = self.catalog.models.values()
            names = {name for m in specs for name in (m.name, *m.presentation.aliases)}
            self._segments = 1 + max((name.count("/") for name in names), default=0)
        return self._segments

    def listed(self) -> list[ModelSpec]:
        """Return the models that clients see in lists, by name."""
        models = self.catalog.models.values()
        return sorted((m for m in models if not m.presentation.unlisted), key=lambda m: m.name)

    def unknown(self, name: str) -> str:
        """Return the error message for an unknown name, with the closest and all listed names."""
        if len(name) > MAX_QUOTED_LENGTH:
            name = name[:MAX_QUOTED_LENGTH] + "…"
        listed = self.listed()
        names = [model.name for model in listed]
        if not names:
            return f"there is no model {name!r}: none is configured"
        with_adapters = [f"{m.name}:{adapter}" for m in listed for adapter in adapters_of(m)]
        close = difflib.get_close_matches(name, [*names, *with_adapters], n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        more = len(names) - MAX_LISTED
        shown = ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
        return f"there is no model {name!r}{hint}; there are: {shown}"

    def _exact_with_adapter(self, name: str) -> ModelSpec | None:
        spec = self.catalog.resolve(name.rpartition(":")[0])
        return spec if spec is not None and requested_adapter(spec, name) is not None else None

    def _index(self) -> SpellingIndex:
        if self._spellings is None:
            names = {m.name: m.presentation.aliases for m in self.catalog.models.values()}
            self._spellings = SpellingIndex(names, self._prefix)
        return self._spellings


class ModelNamesCache:
    """The `ModelNames` of the catalog in use, rebuilt after a reload has replaced the catalog."""

    def __init__(self, permits: Callable[[ModelSpec], bool] | None = None) -> None:
        """Leave out the models that `permits` rejects; None permits all models."""
        self._permits = permits
        self._catalog: Catalog | None = None
        self._names = ModelNames(Catalog())

    def of(self, catalog: Catalog) -> ModelNames:
        """Return the names of the permitted models of `catalog`."""
        if self._catalog is not catalog:
            self._names = ModelNames(self._permitted(catalog))
            self._catalog = catalog
        return self._names

    def _permitted(self, catalog: Catalog) -> Catalog:
        if self._permits is None:
            return catalog
        models = {spec.name: spec for spec in catalog.models.values() if self._permits(spec)}
        return Catalog(MappingProxyType(models))


def adapters_of(spec: ModelSpec) -> list[str]:
    """Return the adapters that requests may select with `NAME:ADAPTER`."""
    names = spec.presentation.metadata.get("adapters")
    return [str(name) for name in names] if isinstance(names, list | tuple) else []


def requested_adapter(spec: ModelSpec, name: str) -> str | None:
    """Return the model's adapter after the last colon of `name`, ignoring case, or None."""
    requested = name.rpartition(":")[2]
    adapters = adapters_of(spec)
    if requested in adapters:
        return requested
    alike = [adapter for adapter in adapters if adapter.lower() == requested.lower()]
    return alike[0] if len(alike) == 1 else None


def _may_be_name(text: str) -> bool:
    stripped = text.strip()
    if not stripped or len(text) > MAX_NAME_LENGTH or stripped.startswith(("/", "\\", "~")):
        return False
    # Without any character that names may contain, every name of the same length would match.
    if not stripped.isprintable() or not re.search("[A-Za-z0-9]", text):
        return False
    return ".." not in re.split(r"[/\\]", stripped)


def _normalized(text: str) -> str:
    """Return the text in lower case, NFC, without `.gguf`, `:latest` and a hub's prefix."""
    text = unicodedata.normalize("NFC", text).strip().lower().removesuffix(".gguf")
    for prefix in _HUB_PREFIXES:
        text = text.removeprefix(prefix)
    return text.removesuffix(":latest")


def _folded(text: str) -> str:
    """Return the form that all spellings of a name share.

    Characters that names can't contain become `-`, by the rule that makes names of file names, and
    so do `:` and `/`.
    """
    return re.sub(r"[^a-z0-9\-_.]", "-", text)
