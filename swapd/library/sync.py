"""Sync: find models, merge them with custom_models.yaml, bring config.yaml up to date.

`make_plan` computes everything without writing; `sync` applies it.
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
from swapd.library.generate import MARKER, generate
from swapd.library.model_entries import AssembledEntries, assemble, sections_by_name, words_of
from swapd.library.ollama_links import FILE as LINKS
from swapd.library.ollama_links import LinkChanges, own_links, update_links
from swapd.library.sources.base import SkippedFile
from swapd.system import state_files
from swapd.system.state_files import FOLDER, replace_text

NAMES = "names.json"
"""File in the state directory: the name of each file found, so that names stay stable."""


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """Everything that a sync computes before it writes."""

    home: Path
    env: Mapping[str, str]
    settings: SyncSettings
    custom: CustomModels
    discovery: Discovery
    assembled: AssembledEntries
    stored_names: Mapping[str, str]

    def store_names(self) -> None:
        """Store the names for the next sync. Raises OSError."""
        if dict(self.discovery.names) != self.stored_names:
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
    """Find models and merge them with custom_models.yaml, or with a text in its place.

    Nothing is written but the cache of GGUF headers. Raises ConfigError for an invalid environment
    or custom_models.yaml.
    """
    env = read_env(home, environ)
    settings = sync_settings(env)
    if custom_text is None:
        custom = read_custom_models(home / FILE, env)
    else:
        custom = parse_custom_models(custom_text, env)
    folder = home / state_files.FOLDER
    headers = model_info.ModelInfoCache(folder / model_info.FILE)
    stored_names = state_files.read_state(folder / NAMES, dict[str, str]) or {}
    discovery = discover(
        settings.stores,
        demo_dir,
        now=now,
        min_age=settings.min_age,
        infos=headers,
        previous_names=stored_names,
        ignored=own_links(home),
    )
    save_headers(headers)
    assembled = assemble(discovery.found, custom, settings, total_memory, home, state_files.size)
    for model in assembled.models:
        _add_stamp(model.entry, home)
    return SyncPlan(home, env, settings, custom, discovery, assembled, stored_names)


def _add_stamp(entry: dict[str, Any], home: Path) -> None:
    """Add the stamp of the entry's files, so that a replaced file changes the entry."""
    cmd = entry["cmd"]
    argv = words_of(cmd) if isinstance(cmd, str) else tuple(cmd)
    stamp = file_stamp(argv, "${worker}" in argv, home)
    if stamp:
        entry.setdefault("stamp", stamp)


def save_headers(headers: model_info.ModelInfoCache) -> None:
    """Save the GGUF headers that were read, where that is possible."""
    try:
        headers.save()
    except OSError as error:
        # The only effect is that they are read again next time.
        logging.getLogger(__name__).debug("the GGUF headers are not cached: %s", error)


CONFIG = "config.yaml"
_PLAIN_KEY = re.compile(r"[A-Za-z0-9][\w./:-]*:")


@dataclass(frozen=True, slots=True)
class SyncReport:
    """Findings and changes of a sync. Models by name, sorted."""

    path: Path
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    settings: tuple[str, ...]
    """Top-level keys whose values changed."""
    broken: tuple[SkippedFile, ...]
    skipped: tuple[SkippedFile, ...]
    warnings: tuple[Problem, ...]
    written: bool
    """False when config.yaml was up to date already."""
    linked: tuple[Path, ...] = ()
    """Links created in MODELS_DIR to Ollama's blobs."""
    unlinked: tuple[Path, ...] = ()
    """Links removed there, all created by swapd."""
    settles_in: float = 0.0
    """Seconds until files that may still be being copied are old enough; 0: there are none."""

    def lines(self, *, files: bool = True) -> list[str]:
        """Describe the changes, a line for each; without `files`, leave out unusable files."""
        models = (("added", self.added), ("changed", self.changed), ("removed", self.removed))
        lines = [f"{verb:8}{name}" for verb, names in models for name in names]
        links = (("linked", self.linked), ("unlinked", self.unlinked))
        lines += [_printable(f"{verb:<9}{link}") for verb, paths in links for link in paths]
        unusable = (("broken", self.broken), ("skipped", self.skipped)) if files else ()
        lines += [
            _printable(f"{verb:8}{file.path}: {file.reason}")
            for verb, skipped in unusable
            for file in skipped
        ]
        return [*lines, f"config  {self.path} {'changed' if self.written else 'unchanged'}"]


def _printable(text: str) -> str:
    """Replace what would control a terminal or break the line: file names can hold anything."""
    return "".join(c if c.isprintable() else "�" for c in text)


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
    """Bring `home/config.yaml` up to date, or raise ConfigError and leave it unchanged.

    `now` is the time of day in seconds since the epoch, `total_memory` the machine's in bytes. A
    config.yaml that a sync did not write is overwritten only with `force`. `schema` is its schema's
    address, for editors. The new text is parsed before it is written, so a sync never leaves a
    configuration that does not load.
    """
    path = home / CONFIG
    old = _old_text(path)
    if old is not None and not old.startswith(MARKER) and not force:
        message = "was not written by sync; move it away, or use --force to overwrite it"
        raise ConfigError([Problem(CONFIG, 0, "", message)])
    plan = make_plan(home, environ, demo_dir, now=now, total_memory=total_memory)
    text, warnings = render(plan, total_memory, schema)
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
        linked=links.created,
        unlinked=links.removed,
        settles_in=plan.discovery.settles_in,
    )


def names_in(config: Path) -> frozenset[str]:
    """Return the names of the models in a generated configuration; none when it is missing."""
    try:
        text = _old_text(config) or ""
    except ConfigError:
        return frozenset()
    # Plain keys, each on its own line, need no parser: with 500 models that is slow.
    _, _, below = text.partition("\nmodels:\n")
    keys = [line[2:] for line in below.splitlines() if re.match("  [^ ]", line)]
    if keys and all(_PLAIN_KEY.fullmatch(key) for key in keys):
        return frozenset(key[:-1] for key in keys)
    return frozenset(_models(_sections(text)))


def render(plan: SyncPlan, total_memory: int, schema: str = "") -> tuple[str, tuple[Problem, ...]]:
    """Return the text of config.yaml and its warnings; raise ConfigError if it would not load."""
    text = generate(plan.assembled, plan.custom, plan.settings, schema)
    return text, _checked(text, plan.assembled, plan.custom, plan.env, total_memory)


def _checked(
    text: str,
    assembled: AssembledEntries,
    custom: CustomModels,
    env: MappingType[str, str],
    total_memory: int,
) -> tuple[Problem, ...]:
    """Parse the text; return all warnings, located in custom_models.yaml where they come from."""
    names = sections_by_name(assembled)
    try:
        loaded = parse(text, CONFIG, env, worker_command=("worker",), total_memory=total_memory)
    except ConfigError as error:
        traced = (_traced(problem, names, custom) for problem in error.problems)
        raise ConfigError(sorted(traced, key=lambda problem: problem.line)) from error
    found = (*assembled.warnings, *(_traced(p, names, custom) for p in loaded.warnings))
    return tuple(dict.fromkeys(found))


def _missing(assembled: AssembledEntries, custom: CustomModels) -> list[Problem]:
    """Return a warning for each file that custom_models.yaml names and that is missing."""
    return [
        custom.warn(model.custom_key, f"{path} is no file", key)
        for model in assembled.models
        for key, path in model.files
        if not path.is_file()
    ]


def _traced(problem: Problem, names: MappingType[str, str], custom: CustomModels) -> Problem:
    """Return the problem with its location in custom_models.yaml, if it comes from there."""
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
        # Not generated by a sync, whatever it is.
        return ""


def _sections(text: str) -> dict[str, object]:
    """Return the top level of a configuration; empty for a text that is damaged."""
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


def _write(plan: SyncPlan, path: Path | None, text: str) -> LinkChanges:
    """Write names, configuration and links, in this order. Raises ConfigError when that fails."""
    file = str(Path(FOLDER, NAMES))
    try:
        plan.store_names()
        if path is not None:
            file = path.name
            replace_text(path, text)
        file = str(Path(FOLDER, LINKS))
        return update_links(plan.home, plan.settings.stores, plan.discovery.found)
    except OSError as error:
        message = f"cannot be written: {error.strerror or error}"
        raise ConfigError([Problem(file, 0, "", message)]) from error
