"""The library for reading: list and show."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import msgspec

from swapd.cli.client import NoAnswerError, get, running
from swapd.cli.config import catalog, find, in_use, models
from swapd.cli.output import (
    FailedError,
    command,
    print_json,
    sanitize,
    show_bytes,
    show_time,
    table,
)
from swapd.paths import Paths, find_paths
from swapd.system.redact import redact_argv, redact_text

if TYPE_CHECKING:
    from swapd.domain.models import ModelSpec
    from swapd.library.inventory import InventoryEntry


UNSERVED = "not served yet"


def list_models(wanted: str, as_json: bool) -> int:
    """A line for each model whose name has `wanted` in it, in capitals or not; and their count."""
    home = find_paths()
    entries = models(home)
    shown = [e for e in entries if _matches(e, wanted)]
    states = {w["model"]: w["state"] for w in _workers(home)}
    if as_json:
        print_json([{**_plain(e), "state": _state(e, states)} for e in shown])
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
    print(f"{len(usable)} of {count} match {wanted!r}" if wanted else count)
    if not all(e.served for e in usable):
        print(f"those not served yet are after {command()} sync")
    return 0


def _matches(entry: InventoryEntry, wanted: str) -> bool:
    return any(wanted.lower() in name.lower() for name in (entry.name, *entry.aliases))


def _state(entry: InventoryEntry, states: dict[str, str]) -> str:
    if entry.broken:
        return "broken"
    return states.get(entry.name, "unloaded" if entry.served else UNSERVED)


def _plain(entry: InventoryEntry) -> dict[str, Any]:
    sanitize: dict[str, Any] = msgspec.to_builtins(entry, enc_hook=str)
    return {**sanitize, "command": redact_text(entry.command)}


def _workers(home: Paths) -> list[dict[str, Any]]:
    """What runs; nothing when swapd does not, or is too busy ending to say."""
    holder = running(home)
    if holder is None:
        return []
    try:
        workers: list[dict[str, Any]] = get(holder, "/running")["running"]
    except NoAnswerError:
        # The list is of the models there are; which of them run is an addition.
        return []
    return workers


def show(name: str, as_json: bool) -> int:
    """Everything that is known of one model."""
    home = find_paths()
    entry = find(models(home), name)
    spec = catalog(home).models.get(entry.name) if in_use(home).is_file() else None
    worker = next((w for w in _workers(home) if w["model"] == entry.name), None)
    argv = shlex.join(redact_argv(spec.launch.argv)) if spec else redact_text(entry.command)
    if as_json:
        settings = _settings(spec) if spec else None
        print_json({**_plain(entry), "command": argv, "settings": settings, "worker": worker})
        return 0
    lines = {**_about(entry), **(_terms(spec) if spec else {}), "command": argv}
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
    """All that is configured, but for secrets."""
    settings: dict[str, Any] = msgspec.to_builtins(spec, enc_hook=dict)
    for name in ("argv", "stop_argv"):
        settings[name] = redact_argv(settings[name])
    pairs = [f"{name}={value}" for name, value in spec.launch.env]
    settings["env"] = [word.split("=", 1) for word in redact_argv(pairs)]
    return settings


def _about(entry: InventoryEntry) -> dict[str, str]:
    """What the model is."""
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


def _terms(spec: ModelSpec) -> dict[str, str]:
    """How it is run."""
    return {
        "description": spec.presentation.description,
        "slots": str(spec.serving.slots),
        "time to live": show_time(spec.serving.ttl) if spec.serving.ttl else "for ever",
        "pinned": "yes" if spec.serving.pinned else "",
        "preload": "yes" if spec.serving.preload else "",
    }


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def complete(incomplete: str) -> list[str]:
    """Names that a shell may complete to."""
    try:
        entries = models(find_paths())
    except FailedError:
        # Somebody who presses Tab can't be told anything; the command itself will.
        return []
    names = [n for e in entries if not e.broken for n in (e.name, *e.aliases)]
    return sorted(name for name in names if name.lower().startswith(incomplete.lower()))
