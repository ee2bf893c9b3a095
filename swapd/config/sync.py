"""`swapd sync`: look for models, merge with custom_models.yaml, bring config.yaml up to date."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from pathlib import Path

from swapd.config.custom import FILE, Custom, read_custom
from swapd.config.discover import Passed, discover
from swapd.config.env import read_env, sync_settings
from swapd.config.generate import MARK, Generated, generate
from swapd.config.load import parse
from swapd.config.problems import ConfigError, Problem
from swapd.config.tree import line_of, parse_tree, textual

CONFIG = "config.yaml"


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a sync found and did. Models by name, sorted."""

    path: Path
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    settings: tuple[str, ...]
    """Top-level keys that are others than before."""
    broken: tuple[Passed, ...]
    skipped: tuple[Passed, ...]
    warnings: tuple[Problem, ...]
    written: bool
    """False when config.yaml already said all that."""


def sync(
    home: Path,
    environ: MappingType[str, str],
    demo_dir: Path,
    *,
    now: float,
    total_memory: int,
    force: bool = False,
) -> SyncReport:
    """Bring `home/config.yaml` up to date; raises ConfigError and leaves it as it is otherwise.

    `now` is the time of day in seconds since the epoch, `total_memory` the machine's in bytes. A
    config.yaml that a sync did not write is overwritten only with `force`. What is written has been
    read back first, so a sync never leaves a configuration that does not load.
    """
    path = home / CONFIG
    old = _old_text(path)
    if old is not None and not old.startswith(MARK) and not force:
        message = "was not written by sync; move it away, or use --force to overwrite it"
        raise ConfigError([Problem(CONFIG, 0, "", message)])
    env = read_env(home, environ)
    settings = sync_settings(env)
    custom = read_custom(home / FILE, env)
    found = discover(settings.models_dir, demo_dir, now=now, min_age=settings.min_age)
    made = generate(found.found, custom, settings, total_memory)
    warnings = _checked(made, custom, env, total_memory)
    if "MODELS_DIR" in env and not settings.models_dir.is_dir():
        message = f"{settings.models_dir} is no folder"
        warnings = (*warnings, Problem("environment", 0, "MODELS_DIR", message))
    before, after = _sections(old or ""), _sections(made.text)
    written = old != made.text
    if written:
        _write(path, made.text)
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
        broken=found.broken,
        skipped=found.skipped,
        warnings=warnings,
        written=written,
    )


def _checked(
    made: Generated, custom: Custom, env: MappingType[str, str], total_memory: int
) -> tuple[Problem, ...]:
    """All warnings; what is wrong is told where its author wrote it, in custom_models.yaml."""
    try:
        loaded = parse(
            made.text, CONFIG, env, worker_command=("worker",), total_memory=total_memory
        )
    except ConfigError as error:
        traced = (_traced(problem, made, custom) for problem in error.problems)
        raise ConfigError(sorted(traced, key=lambda problem: problem.line)) from error
    found = (*made.warnings, *(_traced(p, made, custom) for p in loaded.warnings))
    return tuple(dict.fromkeys(found))


def _traced(problem: Problem, made: Generated, custom: Custom) -> Problem:
    """The problem at the place in custom_models.yaml that it comes from, if it comes from there."""
    for name, bare in made.names.items():
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


def _write(path: Path, text: str) -> None:
    """Replace the file in one step: a reader sees the old text or the new, never a part.

    A new file is its owner's alone, since `env` entries may hold secrets; an old one keeps its
    mode. A link stays a link. Raises ConfigError when the folder cannot be written to.
    """
    target = path.resolve()
    try:
        handle, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise ConfigError([_unwritable(error)]) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            if target.exists():
                os.fchmod(file.fileno(), target.stat().st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).replace(target)
    except OSError as error:
        Path(beside).unlink(missing_ok=True)
        raise ConfigError([_unwritable(error)]) from error


def _unwritable(error: OSError) -> Problem:
    return Problem(CONFIG, 0, "", f"cannot be written: {error.strerror or error}")
