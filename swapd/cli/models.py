"""`list`, `show`, `load`, `unload` and `set`: the models and their settings."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swapd.cli.options import Json, Name, OptionalName
from swapd.cli.output import (
    FailedError,
    command,
    print_json,
    sanitize,
    show_bytes,
    show_time,
    table,
    waiting,
)
from swapd.paths import Paths, demo_directory, find_paths

if TYPE_CHECKING:
    from swapd.domain.models import ModelSpec
    from swapd.library.inventory import InventoryEntry

UNSERVED = "not served yet"
Filter = Annotated[
    str, typer.Argument(metavar="FILTER", help="Text in the names, in upper or lower case.")
]


def list_(name_filter: Filter = "", as_json: Json = False) -> int:
    """List the models."""
    from swapd.cli.catalog import list_models

    paths = find_paths()
    entries = list_models(paths)
    shown = [e for e in entries if _matches(e, name_filter)]
    states = {w["model"]: w["state"] for w in _workers(paths)}
    if as_json:
        print_json([{**_as_dict(e), "state": _state(e, states)} for e in shown])
        return 0
    usable = [e for e in shown if not e.broken]
    rows = [
        [
            e.name,
            show_bytes(e.size),
            e.quantisation,
            f"{e.context:,}" if e.context else "",
            e.source,
            states.get(e.name, "" if e.served else UNSERVED),
        ]
        for e in usable
    ]
    if rows:
        print("\n".join(table(["NAME", ">SIZE", "QUANT", ">CTX", "SOURCE", "STATE"], rows)))
    for entry in shown:
        if entry.broken:
            print(sanitize(f"✗ {entry.path} {entry.broken}"))
    total = sum(not e.broken for e in entries)
    count = f"{total} model{'' if total == 1 else 's'}"
    print(f"{len(usable)} of {count} match {name_filter!r}" if name_filter else count)
    if not all(e.served for e in usable):
        print(f"models not served yet are served after {command()} sync")
    return 0


def _matches(entry: InventoryEntry, text: str) -> bool:
    return any(text.lower() in name.lower() for name in (entry.name, *entry.aliases))


def _state(entry: InventoryEntry, states: dict[str, str]) -> str:
    if entry.broken:
        return "broken"
    return states.get(entry.name, "unloaded" if entry.served else UNSERVED)


def _as_dict(entry: InventoryEntry) -> dict[str, Any]:
    import msgspec

    from swapd.system.redact import redact_text

    fields: dict[str, Any] = msgspec.to_builtins(entry, enc_hook=str)
    return {**fields, "command": redact_text(entry.command)}


def _workers(paths: Paths) -> list[dict[str, Any]]:
    """Return the running workers; none when swapd does not run or does not respond."""
    from swapd.cli.client import NoResponseError, get, running

    holder = running(paths)
    if holder is None:
        return []
    try:
        workers: list[dict[str, Any]] = get(holder, "/running")["running"]
    except NoResponseError:
        # The models are listed all the same, without their states.
        return []
    return workers


def show(name: Name, as_json: Json = False) -> int:
    """Show all data of a model, and the command that runs it."""
    from swapd.cli.catalog import active_config, find_model, list_models, read_config
    from swapd.system.redact import redact_argv, redact_text

    paths = find_paths()
    entry = find_model(list_models(paths), name)
    config = active_config(paths)
    models = read_config(paths, config).catalog.models if config.is_file() else {}
    spec = models.get(entry.name)
    worker = next((w for w in _workers(paths) if w["model"] == entry.name), None)
    argv = shlex.join(redact_argv(spec.launch.argv)) if spec else redact_text(entry.command)
    if as_json:
        settings = _settings(spec) if spec else None
        print_json({**_as_dict(entry), "command": argv, "settings": settings, "worker": worker})
        return 0
    lines = {**_description(entry), **(_serving(spec) if spec else {}), "command": argv}
    if worker:
        lines["state"] = f"{worker['state']}, pid {worker['pid']}"
    else:
        lines["state"] = "not loaded" if entry.served else f"{UNSERVED}: run {command()} sync"
    width = max(len(key) for key, value in lines.items() if value)
    for key, value in lines.items():
        if value:
            print(f"{key:<{width}}  {sanitize(value)}")
    return 0


def _settings(spec: ModelSpec) -> dict[str, Any]:
    """Return all settings of the model without secrets."""
    import msgspec

    from swapd.system.redact import redact_argv

    settings: dict[str, Any] = {"name": spec.name}
    for part in (spec.launch, spec.serving, spec.presentation):
        settings |= msgspec.to_builtins(part, enc_hook=dict)
    for name in ("argv", "stop_argv"):
        settings[name] = redact_argv(settings[name])
    pairs = [f"{name}={value}" for name, value in spec.launch.env]
    settings["env"] = [word.split("=", 1) for word in redact_argv(pairs)]
    return settings


def _description(entry: InventoryEntry) -> dict[str, str]:
    """Return the lines on the model and its files."""
    return {
        "name": entry.name,
        "aliases": ", ".join(entry.aliases),
        "title": entry.title,
        "source": entry.source,
        "file": str(entry.path or ""),
        "also at": ", ".join(str(path) for path in entry.elsewhere),
        "uses": f"the file of {entry.base}" if entry.base else "",
        "size": show_bytes(entry.size),
        "architecture": entry.architecture,
        "parameters": _count(entry.parameters),
        "quantisation": entry.quantisation,
        "vocabulary": _count(entry.vocabulary),
        "template": ("yes" if entry.template else "no") if entry.architecture else "",
        "pooling": entry.pooling,
        "projector": str(entry.projector or ""),
        "adapters": ", ".join(entry.adapters),
        "trained for": _count(entry.trained_context),
        "context": _count(entry.context),
        "memory": show_bytes(entry.need),
    }


def _serving(spec: ModelSpec) -> dict[str, str]:
    """Return the lines on how the model is served."""
    return {
        "description": spec.presentation.description,
        "slots": str(spec.serving.slots),
        "time to live": show_time(spec.serving.ttl) if spec.serving.ttl else "unlimited",
        "pinned": "yes" if spec.serving.pinned else "",
        "preload": "yes" if spec.serving.preload else "",
    }


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def load(name: Name) -> int:
    """Load a model and wait until it is ready."""
    from swapd.cli.client import post, require_running, with_model

    holder = require_running(find_paths())
    with waiting(f"loading {name}"):
        loaded = post(holder, with_model("/load", name))["loaded"]
    print(f"{loaded} is ready")
    return 0


def unload(name: OptionalName = None) -> int:
    """Unload a model, or all; running requests finish first."""
    from swapd.cli.client import post, require_running, with_model

    if name is not None and not name.strip():
        raise FailedError(f"{name!r} is no name of a model; to unload all, give none", 2)
    holder = require_running(find_paths())
    with waiting("unloading"):
        unloaded = post(holder, with_model("/unload", name) if name else "/unload")["unloaded"]
    for model in unloaded:
        print(f"unloaded {model}")
    if not unloaded:
        print(f"{name} is not loaded" if name else "no model is loaded")
    return 0


def set_(
    name: Name,
    settings: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE", help="Settings; KEY= removes one.")
    ],
) -> int:
    """Change settings of a model in custom_models.yaml, and sync."""
    from swapd.cli.sync import run_sync
    from swapd.system.lockfile import exclusive_lock

    values: dict[str, str | None] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            message = f"{setting} is no setting: it must be key=value, or key= to remove one"
            raise FailedError(message, 2)
        values[key.strip()] = value or None
    paths = find_paths()
    paths.folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(paths.edits):
        _write_settings(paths, name, values)
        run_sync(files=False)
    return 0


def _write_settings(paths: Paths, name: str, values: dict[str, str | None]) -> None:
    """Change custom_models.yaml and report it. Raises FailedError."""
    from swapd.config.errors import ConfigError
    from swapd.config.yaml_edit import EditError
    from swapd.library.overrides import set_overrides
    from swapd.process import memory
    from swapd.system.aio import wall

    try:
        result = set_overrides(
            paths.folder,
            os.environ,
            demo_directory(),
            name,
            values,
            now=wall(),
            total_memory=memory.total(),
        )
    except (EditError, ConfigError) as error:
        raise FailedError(f"nothing was changed: {error}") from error
    print(f"{paths.custom}: models.{result.section} {'changed' if result.written else 'unchanged'}")
