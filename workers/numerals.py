"""Numbers that clients write as text."""

from __future__ import annotations

LONGEST = 9
"""Digits. Python refuses to read more than some thousand, and nothing here has so many."""


def natural(text: str) -> int | None:
    """The number that `text` is in plain digits; None if it is none, or one beyond all bounds."""
    plain = text.isascii() and text.isdecimal() and len(text) <= LONGEST
    return int(text) if plain else None
