"""Small facts that swapd keeps for itself: JSON files in the home's `.swapd`, each replaced whole.

All of them can be lost. A file that is not there, that cannot be read or that holds anything but
what was written counts as nothing kept.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeVar

import msgspec

from swapd.config.files import replace_text

FOLDER = ".swapd"
"""Within the home; the daemon keeps its own files there too."""
_T = TypeVar("_T")


def read_state(path: Path, kind: type[_T]) -> _T | None:
    """What was kept, or None."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        logging.getLogger(__name__).debug("%s is not used: %s", path, error)
        return None


def write_state(path: Path, value: object) -> None:
    """Keep the value, in place of what was kept before. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1)
    replace_text(path, text.decode() + "\n")
