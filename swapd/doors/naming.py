"""Which model a client means, and what it is told when there is none such."""

from __future__ import annotations

import difflib

from swapd.config.resolve import Ambiguous, Spellings
from swapd.words.catalog import Catalog, ModelSpec

NAMES_TOLD = 20
LONGEST_SHOWN = 80
"""Characters of a name that there is not, as it is told to its client."""


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
        base = self._index().find(name.rpartition(":")[0])
        if isinstance(base, str) and adapter_in(self.catalog.models[base], name) is not None:
            return self.catalog.models[base]
        raise NoModelError(str(found) if isinstance(found, Ambiguous) else self.unknown(name))

    def _with_adapter(self, name: str) -> ModelSpec | None:
        spec = self.catalog.resolve(name.rpartition(":")[0])
        return spec if spec is not None and adapter_in(spec, name) is not None else None

    def _index(self) -> Spellings:
        if self._spellings is None:
            names = {m.name: m.aliases for m in self.catalog.models.values()}
            self._spellings = Spellings(names)
        return self._spellings

    def unknown(self, name: str) -> str:
        """There is no such model; the nearest name, and those that there are."""
        if len(name) > LONGEST_SHOWN:
            name = name[:LONGEST_SHOWN] + "…"
        names = sorted(m.name for m in self.catalog.models.values() if not m.unlisted)
        if not names:
            return f"there is no model {name!r}: none is configured"
        specs = self.catalog.models.values()
        told = [f"{m.name}:{a}" for m in specs if not m.unlisted for a in adapters_of(m)]
        near = difflib.get_close_matches(name, [*names, *told], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        more = len(names) - NAMES_TOLD
        shown = ", ".join(names[:NAMES_TOLD]) + (f" and {more} more" if more > 0 else "")
        return f"there is no model {name!r}{hint}; there are: {shown}"


def adapters_of(spec: ModelSpec) -> list[str]:
    """The adapters that a request for this model may ask for, as `NAME:ADAPTER`."""
    named = spec.metadata.get("adapters")
    return [str(name) for name in named] if isinstance(named, list | tuple) else []


def adapter_in(spec: ModelSpec, name: str) -> str | None:
    """The adapter of this model that stands behind the last colon of `name`, capitals aside."""
    asked = name.rpartition(":")[2]
    known = adapters_of(spec)
    if asked in known:
        return asked
    alike = [adapter for adapter in known if adapter.lower() == asked.lower()]
    return alike[0] if len(alike) == 1 else None
