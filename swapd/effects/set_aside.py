"""A file that can't be read as what it should be is kept for people and out of the way."""

from __future__ import annotations

import logging
from pathlib import Path


def set_aside(file: Path, why: object, log: logging.Logger) -> None:
    """Rename the file to `<name>.damaged` and say so; where that fails, say that."""
    damaged = file.with_name(file.name + ".damaged")
    try:
        file.replace(damaged)
    except OSError as error:
        log.warning("%s is damaged (%s) and can't be renamed: %s", file, why, error.strerror)
    else:
        log.warning("%s is damaged (%s): it is now %s, and a new one is begun", file, why, damaged)
