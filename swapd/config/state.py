"""Small facts that swapd keeps for itself: JSON files in the home's `.swapd`, each replaced whole.

All of them can be lost. A file that is not there, that cannot be read or that holds anything but
what was written counts as nothing kept; one that is damaged is set aside for people.
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
    """What was kept, or None. A damaged file is renamed to `<name>.damaged`, with a warning."""
    log = logging.getLogger(__name__)
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        damaged = path.with_name(path.name + ".damaged")
        log.warning("%s is damaged (%s): it is now %s, and is made anew", path, error, damaged)
        try:
            path.replace(damaged)
        except OSError as failure:
            log.warning("%s can't be renamed: %s", path, failure.strerror)
    except OSError as error:
        log.debug("%s is not used: %s", path, error)
    return None


def write_state(path: Path, value: object) -> None:
    """Keep the value, in place of what was kept before. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1)
    replace_text(path, text.decode() + "\n")
