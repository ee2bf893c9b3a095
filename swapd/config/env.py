"""Environment of a data directory: `.env`, the process's variables, and the settings in them.

Also the model folders of the programs that download models.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from swapd.config.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class ModelStores:
    """Folders to search, in this order; a missing folder counts as empty."""

    ollama: tuple[Path, ...]
    """OLLAMA_MODELS, else the user's store and the one of Linux's system service."""
    models_dir: Path
    """MODELS_DIR: LM Studio's layout; here Ollama's models get their links."""
    lmstudio: tuple[Path, ...]
    """MODELS_DIR and, where that is not set, the folder that newer versions of LM Studio use."""
    hub: tuple[Path, ...]
    """HF_HUB_CACHE, else the one in HF_HOME, else the user's."""
    folders: tuple[Path, ...]
    """MODEL_FOLDERS: any others, between colons."""
    problems: tuple[Problem, ...] = ()
    """Problems with configured paths that are not folders."""


def find_stores(env: Mapping[str, str]) -> ModelStores:
    """Find the folders by the variables of their programs; an empty variable counts as not set."""
    models_dir = _path(env, _set(env, "MODELS_DIR") or "~/.cache/lm-studio/models")
    own_dir = bool(_set(env, "MODELS_DIR"))
    return ModelStores(
        ollama=_ollama(env),
        models_dir=models_dir,
        lmstudio=(models_dir,) if own_dir else (models_dir, _path(env, "~/.lmstudio/models")),
        hub=(_hub(env),),
        folders=tuple(_path(env, text) for text in _listed(env)),
        problems=tuple(_not_there(env)),
    )


def folders_to_watch(stores: ModelStores) -> list[Path]:
    """Return the existing folders in which a change may add or remove models.

    All are watched recursively. In Ollama's store only the manifests count: a blob without a
    manifest is a download in progress. A folder that does not exist yet, or is on a file system
    without change events, is covered by `SyncSettings.sync_interval`.
    """
    wanted = [
        *(store / "manifests" for store in stores.ollama),
        *stores.lmstudio,
        *stores.hub,
        *stores.folders,
    ]
    return [path for path in dict.fromkeys(wanted) if path.is_dir()]


def _ollama(env: Mapping[str, str]) -> tuple[Path, ...]:
    named = _set(env, "OLLAMA_MODELS")
    if named:
        return (_path(env, named),)
    return (_path(env, "~/.ollama/models"), Path("/usr/share/ollama/.ollama/models"))


def _hub(env: Mapping[str, str]) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if _set(env, name):
            return _path(env, _set(env, name))
    if _set(env, "HF_HOME"):
        return _path(env, _set(env, "HF_HOME")) / "hub"
    return _path(env, _set(env, "XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def _listed(env: Mapping[str, str]) -> list[str]:
    return [text.strip() for text in env.get("MODEL_FOLDERS", "").split(os.pathsep) if text.strip()]


def _not_there(env: Mapping[str, str]) -> list[Problem]:
    named = [(name, _set(env, name)) for name in ("MODELS_DIR", "OLLAMA_MODELS", "HF_HUB_CACHE")]
    named += [("MODEL_FOLDERS", text) for text in _listed(env)]
    return [
        Problem("environment", 0, name, f"{_path(env, text)} is not a folder")
        for name, text in named
        if text and not _path(env, text).is_dir()
    ]


def _set(env: Mapping[str, str], name: str) -> str:
    return env.get(name, "").strip()


def _path(env: Mapping[str, str], text: str) -> Path:
    home = env.get("HOME", "")
    if home and (text == "~" or text.startswith("~/")):
        return Path(home) / text[2:]
    return Path(text).expanduser().absolute()


def read_env(home: Path, environ: Mapping[str, str]) -> Mapping[str, str]:
    """`environ` over what `home/.env` sets; a name without a value in `.env` sets nothing.

    `.env` is read as python-dotenv does: quotes, comments, `export`, `${NAME}` in values. Raises
    ConfigError with the lines that cannot be read; no `.env` is fine.
    """
    path = home / ".env"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return dict(environ)
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        raise ConfigError([Problem(".env", 0, "", message)]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(".env", 0, "", "is not text in UTF-8")]) from error
    problems = [
        Problem(".env", binding.original.line, "", "must be NAME=value")
        for binding in parse_stream(io.StringIO(text))
        if binding.error
    ]
    if problems:
        raise ConfigError(problems)
    values = dotenv_values(stream=io.StringIO(text))
    return {**{k: v for k, v in values.items() if v is not None}, **environ}


@dataclass(frozen=True, slots=True)
class SyncSettings:
    """Settings in the environment for finding models and writing config.yaml."""

    model_ttl: float
    """MODEL_TTL: seconds of idleness after which a worker ends; 0: never."""
    threshold: float
    """MEMORY_PRESSURE_THRESHOLD: percent of the machine's memory."""
    interval: float
    """PRESSURE_CHECK_INTERVAL: seconds."""
    stores: ModelStores
    """Folders in which models are searched."""
    sync_interval: float
    """BRIDGE_SYNC_INTERVAL: seconds from one sync to the next if no change is seen; 0: never."""
    prefix: str
    """MODEL_PREFIX: stands before the name of every model found; may be empty."""
    ctx_size: int
    """DEFAULT_CTX_SIZE: tokens."""
    parallel: int
    """DEFAULT_PARALLEL: slots of a worker."""
    min_age: float
    """MIN_MODEL_AGE_SECONDS: seconds; a file changed more recently may still be incomplete."""


def sync_settings(env: Mapping[str, str]) -> SyncSettings:
    """Read the settings, by the reference's names and defaults; ConfigError names all problems.

    An empty variable counts as not set, except MODEL_PREFIX, which becomes empty.
    """
    problems: list[Problem] = []

    def number(name: str, default: float, least: float, most: float = math.inf) -> float:
        text = env.get(name, "").strip()
        if not text:
            return float(default)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most and math.isfinite(value)):
            bounds = f"{least:g} or more" if math.isinf(most) else f"{least:g} to {most:g}"
            problems.append(
                Problem("environment", 0, name, f"must be a number, {bounds}, not {text}")
            )
            return float(default)
        return value

    def whole(name: str, default: int, least: int) -> int:
        value = number(name, default, least)
        if not value.is_integer():
            message = f"must be a whole number, not {value:g}"
            problems.append(Problem("environment", 0, name, message))
        return int(value)

    settings = SyncSettings(
        model_ttl=number("MODEL_TTL", 1800, 0),
        threshold=number("MEMORY_PRESSURE_THRESHOLD", 75, 0, 100),
        interval=number("PRESSURE_CHECK_INTERVAL", 30, 1),
        stores=find_stores(env),
        sync_interval=number("BRIDGE_SYNC_INTERVAL", 3600, 0),
        prefix=env.get("MODEL_PREFIX", "ls/").strip(),
        ctx_size=whole("DEFAULT_CTX_SIZE", 8192, 1),
        parallel=whole("DEFAULT_PARALLEL", 1, 1),
        min_age=number("MIN_MODEL_AGE_SECONDS", 5, 0),
    )
    if problems:
        raise ConfigError(problems)
    return settings
