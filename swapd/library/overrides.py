"""custom_models.yaml changed by command: `./model set`. Nothing is written that would not load."""

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
from swapd.library.sync import SyncPlan, made_of, make_plan
from swapd.system.state_files import replace_text

_BOM = "\ufeff"


@dataclass(frozen=True, slots=True)
class OverrideResult:
    """What became of custom_models.yaml."""

    section: str
    """The key under `models` that speaks of the model."""
    written: bool
    """False when the file already said all that."""


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
    """Set a model's keys, and take those out that are set to None. A sync is for the caller.

    `model` is a name in any spelling, or a new one where the settings have `cmd` or `base_model`.
    Values are as somebody types them; a dot in a key leads into a section. Raises EditError for
    what can't be done, ConfigError for a file that is wrong, or would be; in both cases the file is
    as it was.
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
    made_of(after, total_memory)
    if changed != text:
        try:
            replace_text(path, (_BOM if _has_bom(path) else "") + changed)
        except OSError as error:
            message = f"cannot be written: {error.strerror or error}"
            raise ConfigError([Problem(FILE, 0, "", message)]) from error
    return OverrideResult(section, changed != text)


def _section(plan: SyncPlan, asked: str, settings: Mapping[str, str | None]) -> str:
    """The key under which the file speaks, or shall speak, of the model."""
    if asked in plan.custom.models:
        return asked
    made = {one.name: one for one in plan.assembled.models}
    names = {name: (*one.entry.get("aliases", ()), one.bare) for name, one in made.items()}
    found = SpellingIndex(names, plan.settings.prefix).find(asked)
    if isinstance(found, str):
        return made[found].custom or made[found].bare
    if found is not None:
        raise EditError(str(found))
    new = asked.strip().removeprefix(plan.settings.prefix)
    if new and (settings.get("cmd") or settings.get("base_model")):
        return new
    hint = did_you_mean(asked, names) or "; one of your own needs cmd or base_model"
    raise EditError(f"there is no model named {asked.strip() or repr(asked)}{hint}")


def _check_key(key: str) -> None:
    top, dot, inner = key.partition(".")
    known = field_shapes(CustomModelConfig)
    if top not in known:
        hint = did_you_mean(top, known) or "; config.example.yaml names them all"
        raise EditError(f"{key}: unknown key{hint}")
    if dot and not inner:
        raise EditError(f"{key}: nothing stands behind the dot")


def _read(path: Path) -> str:
    """The text as it is, line ends too; a file that is not there is empty."""
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
