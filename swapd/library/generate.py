"""The text of config.yaml. Pure, and deterministic.

The line by which a configuration that sync wrote is known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swapd.config.custom_models import CustomModels
from swapd.config.env import SyncSettings
from swapd.config.yaml_dump import dump_yaml
from swapd.config.yaml_nodes import MappingNode
from swapd.library.model_entries import BUDGET, AssembledEntries

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


def generate(
    assembled: AssembledEntries, custom: CustomModels, settings: SyncSettings, schema: str = ""
) -> str:
    """The configuration of these models. The same input gives the same text.

    `schema` is where editors find the schema of it, if there is one.
    """
    models = {made.name: made.entry for made in assembled.models}
    return header(schema) + dump_yaml({**_top(custom, settings), "models": models})


def _top(custom: CustomModels, settings: SyncSettings) -> dict[str, Any]:
    """The keys above the models: the environment's, and over them the author's."""
    memory: dict[str, Any] = {
        "budget": BUDGET,
        "threshold": _plain(settings.threshold),
        "interval": _plain(settings.interval),
    }
    top: dict[str, Any] = {"ttl": _plain(settings.model_ttl), "memory": memory}
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


def _plain(number: float) -> int | float:
    return int(number) if number.is_integer() else number
