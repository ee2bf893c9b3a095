"""The line by which a configuration that sync wrote is known."""

from __future__ import annotations

from pathlib import Path

MARK = "# Written by swapd sync"
HEADER = f"{MARK}; edit custom_models.yaml instead: what is changed here gets lost.\n"


def is_generated(config: Path) -> bool:
    """Whether sync wrote this configuration, and so may write it again."""
    try:
        with config.open(encoding="utf-8") as file:
            return file.readline().startswith(MARK)
    except (OSError, UnicodeDecodeError):
        return False
