"""What counts in the end: the files, `.env` and the environment together, defaults included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from swapd.domain.models import Limits
from swapd.domain.settings import Settings
from swapd.doors.cli.configuration import check, effective
from swapd.doors.cli.say import FailedError, plain, show_bytes
from swapd.paths import Home, find_home


def terms() -> int:
    """Check the configuration; then print what swapd goes by with it. 1 if it can't be used."""
    status = check(None)
    if status != 0:
        return status
    home = find_home()
    loaded = effective(home)
    lines = [*_server(loaded.settings), *_limits(loaded.catalog.limits), *_library(home)]
    width = max(len(key) for key, _ in lines)
    for key, value in lines:
        print(f"{key:<{width}}  {plain(value)}")
    return 0


def _server(settings: Settings) -> Iterator[tuple[str, str]]:
    names = ", ".join(key.name for key in settings.access.keys)
    yield (
        "listens at",
        f"{settings.host}, port {settings.port}{', TLS' if settings.tls.cert else ''}",
    )
    yield "keys", names or "none: whoever reaches it may use it"
    yield "longest request", show_bytes(settings.max_body_bytes)
    yield "a stop waits", f"{settings.drain_grace:g} s for running requests"


def _limits(limits: Limits) -> Iterator[tuple[str, str]]:
    yield "memory", show_bytes(limits.budget_bytes) or "as much as there is"
    threshold = limits.threshold_percent
    above = f"above {threshold:g}% of the machine's memory, looked at every {limits.interval:g} s"
    yield "idle ones go", above if threshold else "when others need their room"
    yield "workers at once", str(limits.max_resident or "as many as there is memory for")
    yield "who goes", f"by policy {limits.policy}"
    most = f"at most {limits.max_waiting}" if limits.max_waiting else "any number"
    yield "requests wait", f"{most}, while others have turns of {limits.max_wait:g} s"


def _library(home: Home) -> Iterator[tuple[str, str]]:
    """Where models are looked for, and what they are called and given."""
    from swapd.config.env import read_env, sync_settings
    from swapd.config.errors import ConfigError

    try:
        settings = sync_settings(read_env(home.folder, os.environ))
    except ConfigError as error:
        raise FailedError(str(error)) from error
    stores = settings.stores
    for source, folders in (
        ("Ollama", stores.ollama),
        ("LM Studio", stores.lmstudio),
        ("Hugging Face", stores.hub),
        ("folders", stores.folders),
    ):
        yield source, ", ".join(map(_place, folders)) or "none named in MODEL_FOLDERS"
    yield "names begin", f"with {settings.prefix}" if settings.prefix else "with nothing more"
    yield "context", f"{settings.ctx_size:,} tokens, less for large models and for small memory"
    every = f"{settings.sync_interval:g} s" if settings.sync_interval else "change that is seen"
    yield "models are", f"looked for at each start and every {every}"


def _place(folder: Path) -> str:
    return str(folder) if folder.is_dir() else f"{folder} (not there)"
