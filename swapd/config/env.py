"""The environment of a home: `.env` and the process's own, and the settings read from it."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from swapd.config.problems import ConfigError, Problem
from swapd.config.stores import Stores, find_stores


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
    """What the environment says about finding models and writing config.yaml."""

    model_ttl: float
    """MODEL_TTL: seconds of idleness after which a worker ends; 0: never."""
    threshold: float
    """MEMORY_PRESSURE_THRESHOLD: percent of the machine's memory."""
    interval: float
    """PRESSURE_CHECK_INTERVAL: seconds."""
    stores: Stores
    """Where models are looked for."""
    sync_interval: float
    """BRIDGE_SYNC_INTERVAL: seconds from one sync to the next if no change is seen; 0: never."""
    prefix: str
    """MODEL_PREFIX: stands before the name of every model found; may be empty."""
    ctx_size: int
    """DEFAULT_CTX_SIZE: tokens."""
    parallel: int
    """DEFAULT_PARALLEL: slots of a worker."""
    min_age: float
    """MIN_MODEL_AGE_SECONDS: a file changed less long ago may still be being copied."""


def sync_settings(env: Mapping[str, str]) -> SyncSettings:
    """The settings, by the reference's names and with its defaults; ConfigError names all faults.

    A variable that is set to nothing counts as not set, but for MODEL_PREFIX, which it empties.
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
