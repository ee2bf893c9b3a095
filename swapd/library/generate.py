"""Generate the text of config.yaml. Deterministic.

Its first line marks it as generated: only a file with this marker is overwritten by a sync.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from swapd.config.yaml_nodes import MappingNode

if TYPE_CHECKING:
    from swapd.config.custom_models import CustomModels
    from swapd.config.env import SyncSettings
    from swapd.library.model_entries import AssembledEntries

MARKER = "# Written by swapd sync"


def header(schema: str = "") -> str:
    """Return the comment on top, with the address of the schema for editors."""
    text = f"{MARKER}; edit custom_models.yaml instead: changes made here are lost.\n"
    return text + (f"# yaml-language-server: $schema={schema}\n" if schema else "")


def is_generated(config: Path) -> bool:
    """Return True if a sync wrote this configuration, and so may overwrite it."""
    try:
        with config.open(encoding="utf-8") as file:
            return file.readline().startswith(MARKER)
    except (OSError, UnicodeDecodeError):
        return False


def generate(
    assembled: AssembledEntries, custom: CustomModels, settings: SyncSettings, schema: str = ""
) -> str:
    """Return the configuration of these models. The same input gives the same text.

    `schema` is the address of its schema for editors, if there is one.
    """
    # The daemon imports this module for `is_generated` alone.
    from swapd.config.yaml_dump import dump_yaml

    models = {model.name: model.entry for model in assembled.models}
    return header(schema) + dump_yaml({**_top(custom, settings), "models": models})


def _top(custom: CustomModels, settings: SyncSettings) -> dict[str, Any]:
    """Return the keys above the models: those of the environment, overridden by the author's."""
    from swapd.library.model_entries import BUDGET

    memory: dict[str, Any] = {
        "budget": BUDGET,
        "threshold": _as_number(settings.threshold),
        "interval": _as_number(settings.interval),
    }
    top: dict[str, Any] = {"ttl": _as_number(settings.model_ttl), "memory": memory}
    for key, entry in custom.tree.entries.items():
        if key == "models" or key.startswith("x-"):
            continue
        if key == "memory" and isinstance(entry.node, MappingNode):
            memory.update({name: inner.node for name, inner in entry.node.entries.items()})
        else:
            top[key] = entry.node
    if "globalTTL" in top and "ttl" not in custom.tree.entries:
        del top["ttl"]
    return dict(sorted(top.items()))


def _as_number(number: float) -> int | float:
    return int(number) if number.is_integer() else number
