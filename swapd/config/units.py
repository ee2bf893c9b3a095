"""Sizes in bytes: parsing and display."""

from __future__ import annotations

import re
from fractions import Fraction
from types import MappingProxyType

_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z]*|%)")
_UNITS = MappingProxyType(
    {
        "": 1,
        "b": 1,
        "kb": 10**3,
        "mb": 10**6,
        "gb": 10**9,
        "tb": 10**12,
        "kib": 2**10,
        "mib": 2**20,
        "gib": 2**30,
        "tib": 2**40,
    }
)


def parse_size(text: str, whole: int | None = None) -> int:
    """Parse `8 GiB`, `8GB`, `512` or, when `whole` is given, `80%` of it; return bytes.

    Units: B, kB MB GB TB (powers of 1000), KiB MiB GiB TiB (powers of 1024); case does not
    count. Raises ValueError with a sentence.
    """
    match = _SIZE.fullmatch(text.strip())
    percent = " or 80%" if whole is not None else ""
    wants = f"must be a size like 8 GiB, 8 GB, 512 MiB{percent}, or a number of bytes"
    if match is None:
        raise ValueError(wants)
    amount, unit = Fraction(match[1]), match[2].lower()
    if unit == "%":
        if whole is None or amount > 100:
            raise ValueError(wants)
        return int(whole * amount / 100)
    if unit not in _UNITS:
        raise ValueError(wants)
    return int(amount * _UNITS[unit])


def show_size(size: int) -> str:
    """Format a number of bytes in the largest unit that gives at least 1."""
    for unit, width in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= width:
            return f"{size / width:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} B"
