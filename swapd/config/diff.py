"""What changes from one catalog to the next. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from swapd.domain.models import Catalog


@dataclass(frozen=True, slots=True)
class CatalogDiff:
    """Names of models, sorted, by what happens to them."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    """A running worker no longer fits its model: the next one will."""
    adjusted: tuple[str, ...] = ()
    """A running worker goes on under the new terms."""
    limits: bool = False
    """The limits over all models are others."""

    def __str__(self) -> str:
        """One line for the log: `added alice; restarted bard, carol`."""
        parts = [
            f"{verb} {', '.join(names)}"
            for verb, names in (
                ("added", self.added),
                ("removed", self.removed),
                ("restarted", self.restarted),
                ("adjusted", self.adjusted),
            )
            if names
        ]
        if self.limits:
            parts.append("limits changed")
        return "; ".join(parts) or "nothing changed"


def diff(old: Catalog, new: Catalog) -> CatalogDiff:
    """What happens to each model when `new` takes the place of `old`."""
    both = sorted(old.models.keys() & new.models.keys())
    restarted = [n for n in both if not old.models[n].same_process(new.models[n])]
    adjusted = [n for n in both if n not in restarted and old.models[n] != new.models[n]]
    return CatalogDiff(
        added=tuple(sorted(new.models.keys() - old.models.keys())),
        removed=tuple(sorted(old.models.keys() - new.models.keys())),
        restarted=tuple(restarted),
        adjusted=tuple(adjusted),
        limits=old.limits != new.limits,
    )
