"""What a sync would write, without writing: the way from the folders and files to the models."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swapd.config.assemble import Assembled, assemble, words_of
from swapd.config.custom_models import FILE, Custom, parse_custom, read_custom
from swapd.config.discover import Discovery, discover
from swapd.config.env import SyncSettings, read_env, sync_settings
from swapd.config.links import own_links
from swapd.gguf import model_info
from swapd.gguf.file_stamp import stamp_of
from swapd.system import state_files

NAMES = "names.json"
"""In the home's state: the name of each file found, so that it keeps it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is known before anything is written."""

    home: Path
    env: Mapping[str, str]
    settings: SyncSettings
    custom: Custom
    discovery: Discovery
    assembled: Assembled
    remembered: Mapping[str, str]

    def remember(self) -> None:
        """Keep the names for the next look. Raises OSError."""
        if dict(self.discovery.names) != self.remembered:
            state_files.write_state(self.home / state_files.FOLDER / NAMES, self.discovery.names)


def look(
    home: Path,
    environ: Mapping[str, str],
    demo_dir: Path,
    *,
    now: float,
    total_memory: int,
    custom_text: str | None = None,
) -> Plan:
    """Look for models and put them together with custom_models.yaml, or a text in its place.

    Of the home, only the heads that were read are kept, for the next look. Raises ConfigError for
    an environment or a custom_models.yaml that can't be used.
    """
    env = read_env(home, environ)
    settings = sync_settings(env)
    if custom_text is None:
        custom = read_custom(home / FILE, env)
    else:
        custom = parse_custom(custom_text, env)
    folder = home / state_files.FOLDER
    kept = model_info.Cards(folder / model_info.FILE)
    remembered = state_files.read_state(folder / NAMES, dict[str, str]) or {}
    discovery = discover(
        settings.stores,
        demo_dir,
        now=now,
        min_age=settings.min_age,
        cards=kept,
        names=remembered,
        bridge=own_links(home),
    )
    keep(kept)
    assembled = assemble(discovery.found, custom, settings, total_memory, home, state_files.size)
    for made in assembled.models:
        _stamp(made.entry, home)
    return Plan(home, env, settings, custom, discovery, assembled, remembered)


def _stamp(entry: dict[str, Any], home: Path) -> None:
    """Let the entry say which files it means, so that one in the place of another changes it."""
    cmd = entry["cmd"]
    argv = words_of(cmd) if isinstance(cmd, str) else tuple(cmd)
    stamp = stamp_of(argv, "${worker}" in argv, home)
    if stamp:
        entry.setdefault("stamp", stamp)


def keep(heads: model_info.Cards) -> None:
    """Keep the heads that were read, where that is possible."""
    try:
        heads.keep()
    except OSError as error:
        # They are read again next time, that is all.
        logging.getLogger(__name__).debug("the heads that were read are not kept: %s", error)
