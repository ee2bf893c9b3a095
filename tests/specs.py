"""Model specs from flat keyword arguments."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from swapd.domain.models import LaunchSpec, ModelSpec, Presentation, ServingPolicy

_PARTS = {"launch": LaunchSpec, "serving": ServingPolicy, "presentation": Presentation}
_PART_OF = {field.name: part for part, kind in _PARTS.items() for field in fields(kind)}


def model_spec(name: str, argv: tuple[str, ...], **values: Any) -> ModelSpec:
    """Return a spec with each value in the part that has a field of that name."""
    return changed_spec(ModelSpec(name, LaunchSpec(argv)), **values)


def changed_spec(spec: ModelSpec, **values: Any) -> ModelSpec:
    """Return a copy with the named fields of its parts replaced."""
    for field, value in values.items():
        part = _PART_OF[field]
        spec = replace(spec, **{part: replace(getattr(spec, part), **{field: value})})
    return spec
