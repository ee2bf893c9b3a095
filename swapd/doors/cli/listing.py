"""The library for reading: list and show."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import msgspec

from swapd.doors.cli.client import NoAnswerError, get, running
from swapd.doors.cli.library import Entry, find, models
from swapd.doors.cli.say import FailedError, print_json, show_bytes, show_time, table
from swapd.home import Home, find_home


def list_models(wanted: str, as_json: bool) -> int:
    """A line for each model whose name has `wanted` in it, in capitals or not; and their count."""
    home = find_home()
    entries = [e for e in models(home) if not e.unlisted]
    shown = [e for e in entries if _matches(e, wanted)]
    states = {w["model"]: w["state"] for w in _workers(home)}
    if as_json:
        print_json([{**_plain(e), "state": states.get(e.name, "unloaded")} for e in shown])
        return 0
    rows = [
        [
            e.name,
            show_bytes(e.size) or ("missing" if e.file else ""),
            e.quantisation,
            f"{e.context:,}" if e.context else "",
            e.source,
            states.get(e.name, ""),
        ]
        for e in shown
    ]
    if rows:
        print("\n".join(table(["NAME", ">SIZE", "QUANT", ">CTX", "SOURCE", "STATE"], rows)))
    total = f"{len(entries)} model{'' if len(entries) == 1 else 's'}"
    print(f"{len(shown)} of {total} match {wanted!r}" if wanted else total)
    return 0


def _matches(entry: Entry, wanted: str) -> bool:
    return any(wanted.lower() in name.lower() for name in (entry.name, *entry.aliases))


def _plain(entry: Entry) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(entry)
    return plain


def _workers(home: Home) -> list[dict[str, Any]]:
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
    home = find_home()
    entry = find(home, name)
    worker = next((w for w in _workers(home) if w["model"] == entry.name), None)
    head = _head(entry)
    if as_json:
        print_json({**_plain(entry), "file_says": head, "worker": worker})
        return 0
    lines = {
        "name": entry.name,
        "aliases": ", ".join(entry.aliases),
        "title": entry.title,
        "description": entry.description,
        "source": entry.source,
        "file": entry.file,
        "size": show_bytes(entry.size) or ("missing" if entry.file else ""),
        "quantisation": entry.quantisation,
        **{key: _text(value) for key, value in head.items()},
        "context": f"{entry.context:,}" if entry.context else "",
        "slots": str(entry.slots),
        "memory": show_bytes(entry.need),
        "time to live": show_time(entry.ttl) if entry.ttl else "for ever",
        "pinned": "yes" if entry.pinned else "",
        "preload": "yes" if entry.preload else "",
        "state": f"{worker['state']}, pid {worker['pid']}" if worker else "not loaded",
        "command": shlex.join(entry.argv),
    }
    width = max(len(key) for key, value in lines.items() if value)
    for key, value in lines.items():
        if value:
            print(f"{key:<{width}}  {value}")
    return 0


def _head(entry: Entry) -> dict[str, Any]:
    """What the model's file says of itself; why it says nothing if it is damaged."""
    from swapd.config.metadata import DamagedModelError, read_head

    if not entry.size:
        return {}
    try:
        head = read_head(Path(entry.file))
    except (DamagedModelError, OSError) as error:
        return {"damaged": f"the file {error}"}
    arch = head.architecture
    return {
        "architecture": arch,
        "trained for": head.number(f"{arch}.context_length"),
        "layers": head.number(f"{arch}.block_count"),
        "tensors": head.tensors,
        "template": "tokenizer.chat_template" in head.fields,
    }


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def load(name: str) -> int:
    """Have a model's worker started; return when it is ready."""
    from swapd.doors.cli.client import named, post, require_running
    from swapd.doors.cli.say import waiting

    holder = require_running(find_home())
    with waiting(f"loading {name}"):
        loaded = post(holder, named("/load", name))["loaded"]
    print(f"{loaded} is ready")
    return 0


def unload(name: str) -> int:
    """Let a model's worker go, or, without a name, all."""
    from swapd.doors.cli.client import named, post, require_running
    from swapd.doors.cli.say import waiting

    holder = require_running(find_home())
    with waiting("unloading"):
        unloaded = post(holder, named("/unload", name) if name else "/unload")["unloaded"]
    for model in unloaded:
        print(f"unloaded {model}")
    if not unloaded:
        print(f"{name} is not loaded" if name else "no model is loaded")
    return 0


def complete(incomplete: str) -> list[str]:
    """Names that a shell may complete to."""
    try:
        entries = models(find_home())
    except FailedError:
        # Somebody who presses Tab can't be told anything; the command itself will.
        return []
    return sorted(
        n for e in entries for n in (e.name, *e.aliases) if n.lower().startswith(incomplete.lower())
    )
