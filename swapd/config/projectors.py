"""Which projector of several belongs to a model, by their names. Pure.

A projector turns images or sound into a model's tokens, and comes as a file of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeVar

_PREFERRED = ("F16", "BF16", "Q8_0", "F32")
"""The best of several projectors that differ in precision alone is the first of these."""
_T = TypeVar("_T")


def is_projector_name(stem: str) -> bool:
    """Whether a file is called as projectors are."""
    return "mmproj" in stem.lower()


def owner_of(stem: str) -> str:
    """The model's name within a projector's, if there is one: `eye` in `mmproj-eye-f16`."""
    stem = re.sub(r"mmproj|model", "", stem.lower())
    return re.sub(r"[-_.](?:b?f16|f32|q8_0)$", "", stem).strip("-_.")


def rank(quantisation: str) -> int:
    """The better one has the lower rank."""
    kind = quantisation.upper()
    return _PREFERRED.index(kind) if kind in _PREFERRED else len(_PREFERRED)


def suiting(model: str, projectors: Iterable[tuple[str, _T]], others: Iterable[str]) -> list[_T]:
    """Of projectors with the names in theirs, those that may belong to the model of this stem.

    One that bears the beginning of a model's name is only for models that begin so; `others` are
    the stems of all models beside.
    """
    stems = [stem.lower() for stem in others]
    pairs = list(projectors)
    named = [one for owner, one in pairs if owner and model.lower().startswith(owner)]
    common = [one for owner, one in pairs if owner and not any(s.startswith(owner) for s in stems)]
    common += [one for owner, one in pairs if not owner]
    return named or common
