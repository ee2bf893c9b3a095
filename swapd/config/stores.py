"""Where the models of a machine lie: the folders of the programs that people fetch them with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from swapd.config.problems import Problem


@dataclass(frozen=True, slots=True)
class Stores:
    """Folders to look through, in this order; those that do not exist hold nothing."""

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
    """Folders that were named and are none."""


def find_stores(env: Mapping[str, str]) -> Stores:
    """The folders by the variables that their own programs heed, each empty one as if not set."""
    models_dir = _path(env, _set(env, "MODELS_DIR") or "~/.cache/lm-studio/models")
    own_dir = bool(_set(env, "MODELS_DIR"))
    return Stores(
        ollama=_ollama(env),
        models_dir=models_dir,
        lmstudio=(models_dir,) if own_dir else (models_dir, _path(env, "~/.lmstudio/models")),
        hub=(_hub(env),),
        folders=tuple(_path(env, text) for text in _listed(env)),
        problems=tuple(_not_there(env)),
    )


def folders_to_watch(stores: Stores) -> list[Path]:
    """The folders in which a change means other models to find, as far as they exist.

    All are to be watched with what is below them. Of Ollama's store it is the manifests: a blob
    without a manifest is a download under way. What does not exist yet, or lies on a file system
    that tells no changes, is left to `SyncSettings.sync_interval`.
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
        Problem("environment", 0, name, f"{_path(env, text)} is no folder")
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
