"""Catalogs for the simulated machine."""

from __future__ import annotations

from collections.abc import Collection

from swapd.domain.models import Catalog, Limits
from tests.specs import changed_spec, model_spec


def catalog(
    needs: dict[str, int],
    limits: Limits,
    slots: int = 1,
    ttl: float = 0.0,
    max_queue: int = 64,
    pinned: Collection[str] = (),
    *,
    hang_timeout: float = 0.0,
    min_residency: float = 0.0,
) -> Catalog:
    """A catalog of models that need so many bytes each."""
    models = {
        name: model_spec(
            name=name,
            argv=(name,),
            need_bytes=need,
            slots=slots,
            ttl=ttl,
            max_queue=max_queue,
            pinned=name in pinned,
            start_timeout=30.0,
            hang_timeout=hang_timeout,
            min_residency=min_residency,
        )
        for name, need in needs.items()
    }
    return Catalog(models, limits)


def altered(before: Catalog, model: str, **changes: object) -> Catalog:
    """The same catalog with one model changed."""
    spec = changed_spec(before.models[model], **changes)
    return Catalog({**before.models, model: spec}, before.limits)
