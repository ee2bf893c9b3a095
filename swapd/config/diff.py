"""Differences between two catalogs. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from swapd.domain.models import Catalog


@dataclass(frozen=True, slots=True)
class CatalogDiff:
    """Sorted names of models, by the kind of change."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    """Models whose running worker has to be replaced."""
    adjusted: tuple[str, ...] = ()
    """Models whose running worker continues with the new settings."""
    limits: bool = False
    """True if the limits of all models together changed."""

    def __str__(self) -> str:
        """Return a line for the log: `added alice; restarted bard, carol`."""
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
    """Compare two catalogs: the effect on each model when `new` replaces `old`."""
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
