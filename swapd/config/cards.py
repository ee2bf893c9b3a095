"""Cards of files, each head read once and kept by path, size and time of change."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from swapd.config.card import Card, card_of
from swapd.config.metadata import DamagedModelError, read_head
from swapd.system.state_files import read_state, write_state

FILE = "cards.json"
_VERSION = 3
"""Another number whenever a card holds other things, or a head is read in another way."""


@dataclass(frozen=True, slots=True)
class _Kept:
    size: int
    changed: int
    """Time of the last change, in nanoseconds since the epoch."""
    card: Card | None
    damage: str = ""
    """Why the file has no card."""


class _File(msgspec.Struct):
    version: int
    cards: dict[str, _Kept]


class Cards:
    """The cards that were read before, and those that are read now."""

    def __init__(self, path: Path | None = None) -> None:
        """Take up what `path` holds; without one, nothing is kept from one run to the next."""
        kept = read_state(path, _File) if path is not None else None
        self._path = path
        self._old = kept.cards if kept is not None and kept.version == _VERSION else {}
        self._now: dict[str, _Kept] = {}

    def card(self, path: Path, status: os.stat_result) -> Card:
        """The card of a file whose `stat` is given.

        Raises DamagedModelError for a file that is no whole GGUF file, OSError for one that cannot
        be read.
        """
        key = str(path)
        kept = self._old.get(key)
        if kept is None or (kept.size, kept.changed) != (status.st_size, status.st_mtime_ns):
            kept = _look(path, status)
        self._now[key] = kept
        if kept.card is None:
            raise DamagedModelError(kept.damage)
        return kept.card

    def keep(self) -> bool:
        """Keep the cards of the files that were asked for; whether that made a difference.

        Raises OSError when they cannot be kept.
        """
        if self._path is None or self._now == self._old:
            return False
        write_state(self._path, _File(_VERSION, self._now))
        self._old = dict(self._now)
        return True


def _look(path: Path, status: os.stat_result) -> _Kept:
    try:
        card = card_of(read_head(path))
    except DamagedModelError as error:
        return _Kept(status.st_size, status.st_mtime_ns, None, str(error))
    return _Kept(status.st_size, status.st_mtime_ns, card)
