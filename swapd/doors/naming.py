"""Which model a client means, and what it is told when there is none such."""

from __future__ import annotations

import difflib

from swapd.config.resolve import Ambiguous, Spellings
from swapd.words.catalog import Catalog, ModelSpec

NAMES_TOLD = 20


class NoModelError(Exception):
    """A name means no model, or could mean several; the message is for the client."""


class Names:
    """Finds models by name in one catalog. Exact names cost a look-up; other spellings an index,
    which is made when the first of them comes."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._spellings: Spellings | None = None

    def find(self, name: str) -> ModelSpec:
        """The model that `name` means: exactly, with an adapter behind a colon, or by spelling."""
        spec = self.catalog.resolve(name) or self._with_adapter(name)
        if spec is not None:
            return spec
        found = self._index().find(name)
        if isinstance(found, str):
            return self.catalog.models[found]
        raise NoModelError(str(found) if isinstance(found, Ambiguous) else self.unknown(name))

    def _with_adapter(self, name: str) -> ModelSpec | None:
        base, _, adapter = name.rpartition(":")
        spec = self.catalog.resolve(base)
        return spec if spec is not None and adapter in adapters_of(spec) else None

    def _index(self) -> Spellings:
        if self._spellings is None:
            names = {m.name: m.aliases for m in self.catalog.models.values()}
            self._spellings = Spellings(names)
        return self._spellings

    def unknown(self, name: str) -> str:
        """There is no such model; the nearest name, and those that there are."""
        names = sorted(m.name for m in self.catalog.models.values() if not m.unlisted)
        if not names:
            return f"there is no model {name!r}: none is configured"
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        more = len(names) - NAMES_TOLD
        shown = ", ".join(names[:NAMES_TOLD]) + (f" and {more} more" if more > 0 else "")
        return f"there is no model {name!r}{hint}; there are: {shown}"


def adapters_of(spec: ModelSpec) -> list[str]:
    """The adapters that a request for this model may ask for, as `NAME:ADAPTER`."""
    named = spec.metadata.get("adapters")
    return [str(name) for name in named] if isinstance(named, list | tuple) else []
