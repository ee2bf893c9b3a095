"""The line by which a configuration that sync wrote is known."""

from __future__ import annotations

from pathlib import Path

MARK = "# Written by swapd sync"


def header(schema: str = "") -> str:
    """The comment on top; with the address of a schema, editors know what may stand below."""
    said = f"{MARK}; edit custom_models.yaml instead: what is changed here gets lost.\n"
    return said + (f"# yaml-language-server: $schema={schema}\n" if schema else "")


def is_generated(config: Path) -> bool:
    """Whether sync wrote this configuration, and so may write it again."""
    try:
        with config.open(encoding="utf-8") as file:
            return file.readline().startswith(MARK)
    except (OSError, UnicodeDecodeError):
        return False
