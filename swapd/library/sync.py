"""What a sync would write, without writing: the way from the folders and files to the models.

`swapd sync`: look for models, merge with custom_models.yaml, bring config.yaml up to date.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swapd.config.custom_models import FILE, CustomModels, parse_custom_models, read_custom_models
from swapd.config.env import SyncSettings, read_env, sync_settings
from swapd.config.errors import ConfigError, Problem
from swapd.config.load import parse
from swapd.config.yaml_nodes import line_of, parse_tree, textual
from swapd.gguf import model_info
from swapd.gguf.file_stamp import file_stamp
from swapd.library.discovery import Discovery, discover
from swapd.library.generate import MARK, generate
from swapd.library.model_entries import AssembledEntries, assemble, sections_by_name, words_of
from swapd.library.ollama_links import FILE as LINKS
from swapd.library.ollama_links import Links, own_links, update_links
from swapd.library.sources.base import SkippedFile
from swapd.system import state_files
from swapd.system.state_files import FOLDER, replace_text

NAMES = "names.json"
"""In the home's state: the name of each file found, so that it keeps it."""


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """All that is known before anything is written."""

    home: Path
    env: Mapping[str, str]
    settings: SyncSettings
    custom: CustomModels
    discovery: Discovery
    assembled: AssembledEntries
    remembered: Mapping[str, str]

    def remember(self) -> None:
        """Keep the names for the next look. Raises OSError."""
        if dict(self.discovery.names) != self.remembered:
            state_files.write_state(self.home / state_files.FOLDER / NAMES, self.discovery.names)


def make_plan(
    home: Path,
    environ: Mapping[str, str],
    demo_dir: Path,
    *,
    now: float,
    total_memory: int,
    custom_text: str | None = None,
) -> SyncPlan:
    """Look for models and put them together with custom_models.yaml, or a text in its place.

    Of the home, only the heads that were read are kept, for the next look. Raises ConfigError for
    an environment or a custom_models.yaml that can't be used.
    """
    env = read_env(home, environ)
    settings = sync_settings(env)
    if custom_text is None:
        custom = read_custom_models(home / FILE, env)
    else:
        custom = parse_custom_models(custom_text, env)
    folder = home / state_files.FOLDER
    kept = model_info.ModelInfoCache(folder / model_info.FILE)
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
    apply_plan(kept)
    assembled = assemble(discovery.found, custom, settings, total_memory, home, state_files.size)
    for made in assembled.models:
        _stamp(made.entry, home)
    return SyncPlan(home, env, settings, custom, discovery, assembled, remembered)


def _stamp(entry: dict[str, Any], home: Path) -> None:
    """Let the entry say which files it means, so that one in the place of another changes it."""
    cmd = entry["cmd"]
    argv = words_of(cmd) if isinstance(cmd, str) else tuple(cmd)
    stamp = file_stamp(argv, "${worker}" in argv, home)
    if stamp:
        entry.setdefault("stamp", stamp)


def apply_plan(heads: model_info.ModelInfoCache) -> None:
    """Keep the heads that were read, where that is possible."""
    try:
        heads.keep()
    except OSError as error:
        # They are read again next time, that is all.
        logging.getLogger(__name__).debug("the heads that were read are not kept: %s", error)


CONFIG = "config.yaml"
_PLAIN_KEY = re.compile(r"[A-Za-z0-9][\w./:-]*:")


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a sync found and did. Models by name, sorted."""

    path: Path
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    settings: tuple[str, ...]
    """Top-level keys that are others than before."""
    broken: tuple[SkippedFile, ...]
    skipped: tuple[SkippedFile, ...]
    warnings: tuple[Problem, ...]
    written: bool
    """False when config.yaml already said all that."""
    linked: tuple[Path, ...] = ()
    """Links made in MODELS_DIR to Ollama's blobs."""
    unlinked: tuple[Path, ...] = ()
    """Links removed there, all of them swapd's own."""
    settles_in: float = 0.0
    """Seconds after which a sync finds the files that may still be being copied now; 0: none."""


def sync(
    home: Path,
    environ: MappingType[str, str],
    demo_dir: Path,
    *,
    now: float,
    total_memory: int,
    force: bool = False,
    schema: str = "",
) -> SyncReport:
    """Bring `home/config.yaml` up to date; raises ConfigError and leaves it as it is otherwise.

    `now` is the time of day in seconds since the epoch, `total_memory` the machine's in bytes. A
    config.yaml that a sync did not write is overwritten only with `force`. Editors find its schema
    at the address `schema`. What is written has been
    read back first, so a sync never leaves a configuration that does not load.
    """
    path = home / CONFIG
    old = _old_text(path)
    if old is not None and not old.startswith(MARK) and not force:
        message = "was not written by sync; move it away, or use --force to overwrite it"
        raise ConfigError([Problem(CONFIG, 0, "", message)])
    plan = make_plan(home, environ, demo_dir, now=now, total_memory=total_memory)
    text, warnings = made_of(plan, total_memory, schema)
    warnings = (*warnings, *plan.settings.stores.problems, *_missing(plan.assembled, plan.custom))
    before, after = _sections(old or ""), _sections(text)
    written = old != text
    links = _write(plan, path if written else None, text)
    models_before, models_after = _models(before), _models(after)
    return SyncReport(
        path=path,
        added=tuple(sorted(models_after.keys() - models_before.keys())),
        changed=_differing(models_before, models_after),
        removed=tuple(sorted(models_before.keys() - models_after.keys())),
        settings=tuple(
            sorted(
                key
                for key in (before.keys() | after.keys()) - {"models"}
                if before.get(key) != after.get(key)
            )
        ),
        broken=plan.discovery.broken,
        skipped=plan.discovery.skipped,
        warnings=(*warnings, *links.problems),
        written=written,
        linked=links.made,
        unlinked=links.removed,
        settles_in=plan.discovery.settles_in,
    )


def names_in(config: Path) -> frozenset[str]:
    """The names of the models in a configuration that a sync wrote; none where there is none."""
    try:
        text = _old_text(config) or ""
    except ConfigError:
        return frozenset()
    # Most are written as they are, each on a line of its own: no need to parse 500 models.
    _, _, below = text.partition("\nmodels:\n")
    keys = [line[2:] for line in below.splitlines() if re.match("  [^ ]", line)]
    if keys and all(_PLAIN_KEY.fullmatch(key) for key in keys):
        return frozenset(key[:-1] for key in keys)
    return frozenset(_models(_sections(text)))


def made_of(plan: SyncPlan, total_memory: int, schema: str = "") -> tuple[str, tuple[Problem, ...]]:
    """The text of config.yaml and what its author should know; ConfigError if it would not load."""
    text = generate(plan.assembled, plan.custom, plan.settings, schema)
    return text, _checked(text, plan.assembled, plan.custom, plan.env, total_memory)


def _checked(
    text: str,
    assembled: AssembledEntries,
    custom: CustomModels,
    env: MappingType[str, str],
    total_memory: int,
) -> tuple[Problem, ...]:
    """All warnings; what is wrong is told where its author wrote it, in custom_models.yaml."""
    names = sections_by_name(assembled)
    try:
        loaded = parse(text, CONFIG, env, worker_command=("worker",), total_memory=total_memory)
    except ConfigError as error:
        traced = (_traced(problem, names, custom) for problem in error.problems)
        raise ConfigError(sorted(traced, key=lambda problem: problem.line)) from error
    found = (*assembled.warnings, *(_traced(p, names, custom) for p in loaded.warnings))
    return tuple(dict.fromkeys(found))


def _missing(assembled: AssembledEntries, custom: CustomModels) -> list[Problem]:
    """Files that the author names and that are not there."""
    return [
        custom.warn(made.custom, f"{path} is no file", key)
        for made in assembled.models
        for key, path in made.files
        if not path.is_file()
    ]


def _traced(problem: Problem, names: MappingType[str, str], custom: CustomModels) -> Problem:
    """The problem at the place in custom_models.yaml that it comes from, if it comes from there."""
    for name, bare in names.items():
        within = f"models.{name}"
        if problem.key == within or problem.key.startswith((within + ".", within + "[")):
            rest = problem.key[len(within) :]
            key = rest.lstrip(".").split("[")[0].split(".")[0]
            line = line_of(custom.tree, ("models", bare, key))
            return Problem(FILE, line, f"models.{bare}{rest}", problem.message)
    key = problem.key.split(".")[0]
    if key in custom.tree.entries and key != "models":
        line = line_of(custom.tree, tuple(problem.key.split(".")))
        return Problem(FILE, line, problem.key, problem.message)
    return problem


def _old_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        raise ConfigError([Problem(CONFIG, 0, "", message)]) from error
    except UnicodeDecodeError:
        # Whatever it is, a sync did not write it.
        return ""


def _sections(text: str) -> dict[str, object]:
    """The top level of a configuration; nothing for a text that is none any more."""
    try:
        tree, _ = parse_tree(text, CONFIG)
    except ConfigError:
        return {}
    return {key: textual(entry.node) for key, entry in tree.entries.items()}


def _models(sections: dict[str, object]) -> dict[str, object]:
    models = sections.get("models")
    return models if isinstance(models, dict) else {}


def _differing(before: dict[str, object], after: dict[str, object]) -> tuple[str, ...]:
    return tuple(sorted(n for n in before.keys() & after.keys() if before[n] != after[n]))


def _write(plan: SyncPlan, path: Path | None, text: str) -> Links:
    """Everything that a sync writes, what nobody else reads first; ConfigError where it can't."""
    file = str(Path(FOLDER, NAMES))
    try:
        plan.remember()
        if path is not None:
            file = path.name
            replace_text(path, text)
        file = str(Path(FOLDER, LINKS))
        return update_links(plan.home, plan.settings.stores, plan.discovery.found)
    except OSError as error:
        message = f"cannot be written: {error.strerror or error}"
        raise ConfigError([Problem(file, 0, "", message)]) from error
