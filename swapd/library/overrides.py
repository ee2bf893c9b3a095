"""Change custom_models.yaml for `./model set`. A file that would not load is not written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from swapd.config.custom_models import FILE
from swapd.config.decode import field_shapes
from swapd.config.errors import ConfigError, Problem, did_you_mean
from swapd.config.schema import CustomModelConfig
from swapd.config.yaml_dump import parse_setting
from swapd.config.yaml_edit import EditError, set_value, unset
from swapd.domain.model_names import SpellingIndex
from swapd.library.sync import SyncPlan, make_plan, render
from swapd.system.state_files import replace_text

_BOM = "\ufeff"


@dataclass(frozen=True, slots=True)
class OverrideResult:
    """Result of a change of custom_models.yaml."""

    section: str
    """Key of the model under `models`."""
    written: bool
    """False when the file already had these settings."""


def set_overrides(
    home: Path,
    environ: Mapping[str, str],
    demo_dir: Path,
    model: str,
    settings: Mapping[str, str | None],
    *,
    now: float,
    total_memory: int,
) -> OverrideResult:
    """Set a model's keys; remove those with the value None. The caller runs a sync afterwards.

    `model` is a name in any spelling, or a new one where the settings have `cmd` or `base_model`.
    Values are text as typed; a dot in a key selects a key within a section. Raises EditError for an
    impossible change, ConfigError for a file that is invalid, or would be; in both cases the file
    stays unchanged.
    """
    path = home / FILE
    text = _read(path)
    arguments = home, environ, demo_dir
    plan = make_plan(*arguments, now=now, total_memory=total_memory)
    for key in settings:
        _check_key(key)
    section = _section(plan, model, settings)
    changed = text
    for key, value in settings.items():
        if value is None:
            changed = unset(changed, section, key)
        else:
            changed = set_value(changed, section, key, parse_setting(key, value))
    after = make_plan(*arguments, now=now, total_memory=total_memory, custom_text=changed)
    render(after, total_memory)
    if changed != text:
        try:
            replace_text(path, (_BOM if _has_bom(path) else "") + changed)
        except OSError as error:
            message = f"cannot be written: {error.strerror or error}"
            raise ConfigError([Problem(FILE, 0, "", message)]) from error
    return OverrideResult(section, changed != text)


def _section(plan: SyncPlan, name: str, settings: Mapping[str, str | None]) -> str:
    """Return the key of the model's section in the file, existing or new."""
    if name in plan.custom.models:
        return name
    entries = {one.name: one for one in plan.assembled.models}
    names = {key: (*one.entry.get("aliases", ()), one.bare) for key, one in entries.items()}
    found = SpellingIndex(names, plan.settings.prefix).find(name)
    if isinstance(found, str):
        return entries[found].custom_key or entries[found].bare
    if found is not None:
        raise EditError(str(found))
    new = name.strip().removeprefix(plan.settings.prefix)
    if new and (settings.get("cmd") or settings.get("base_model")):
        return new
    hint = did_you_mean(name, names) or "; a model of your own needs cmd or base_model"
    raise EditError(f"there is no model named {name.strip() or repr(name)}{hint}")


def _check_key(key: str) -> None:
    top, dot, inner = key.partition(".")
    known = field_shapes(CustomModelConfig)
    if top not in known:
        hint = did_you_mean(top, known) or "; config.example.yaml lists all keys"
        raise EditError(f"{key}: unknown key{hint}")
    if dot and not inner:
        raise EditError(f"{key}: nothing stands behind the dot")


def _read(path: Path) -> str:
    """Read the text unchanged, line ends included; a missing file is empty."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return ""
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        raise ConfigError([Problem(FILE, 0, "", message)]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(FILE, 0, "", "is not text in UTF-8")]) from error


def _has_bom(path: Path) -> bool:
    return path.exists() and path.read_bytes().startswith(_BOM.encode())
