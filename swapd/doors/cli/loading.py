"""Workers by hand: load and unload."""

from __future__ import annotations

from swapd.doors.cli.client import named, post, require_running
from swapd.doors.cli.say import FailedError, waiting
from swapd.paths import find_home


def load(name: str) -> int:
    """Have a model's worker started; return when it is ready."""
    holder = require_running(find_home())
    with waiting(f"loading {name}"):
        loaded = post(holder, named("/load", name))["loaded"]
    print(f"{loaded} is ready")
    return 0


def unload(name: str | None) -> int:
    """Let a model's worker go, or, without a name, all. Raises FailedError."""
    if name is not None and not name.strip():
        raise FailedError(f"{name!r} is no name of a model; to unload all, give none", 2)
    holder = require_running(find_home())
    with waiting("unloading"):
        unloaded = post(holder, named("/unload", name) if name else "/unload")["unloaded"]
    for model in unloaded:
        print(f"unloaded {model}")
    if not unloaded:
        print(f"{name} is not loaded" if name else "no model is loaded")
    return 0
