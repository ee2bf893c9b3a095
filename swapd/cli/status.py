"""What runs: status, ps and stats."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from swapd.cli.client import NoAnswerError, get, require_running, running
from swapd.cli.output import NOT_RUNNING, print_error, print_json, show_bytes, show_time, table
from swapd.paths import find_paths

EVERY = 1.0
"""Seconds from one look to the next, for who watches."""


def status(as_json: bool) -> int:
    """Say whether it runs, where, and what is loaded."""
    home = find_paths()
    holder = running(home)
    if holder is None:
        if as_json:
            print_json({"running": False})
        else:
            print("✗ swapd is not running")
        return NOT_RUNNING
    try:
        workers = get(holder, "/running")["running"]
        names = [m["id"] for m in get(holder, "/v1/models")["data"]]
    except NoAnswerError as error:
        print_error(f"pid {holder.pid} runs, but: {error}")
        return 1
    told = {
        "running": True,
        "closing": holder.closing,
        "pid": holder.pid,
        "endpoint": holder.endpoint,
        "socket": str(home.socket) if home.socket.is_socket() else None,
        "log": holder.log,
        "models": names,
        "workers": workers,
        "memory": memory(),
    }
    if as_json:
        print_json(told)
        return 0
    if holder.closing:
        print(f"✗ swapd at {holder.endpoint} (pid {holder.pid}) is shutting down: it finishes")
        print("  what it serves and takes nothing new")
    else:
        print(f"✓ swapd runs at {holder.endpoint} (pid {holder.pid})")
    print(f"✓ socket {home.socket}" if told["socket"] else f"✗ there is no socket {home.socket}")
    print(f"✓ {len(names)} models: {', '.join(names[:12])}{' …' if len(names) > 12 else ''}")
    for worker in workers:
        print(f"✓ {_about(worker)}")
    if not workers:
        print("✗ no model is loaded; the first request loads one")
    print(f"✓ {_memory_line()}")
    return 0


def memory() -> dict[str, float]:
    """The machine's memory: percent in use, bytes in use, bytes in all."""
    import psutil

    seen = psutil.virtual_memory()
    return {"percent": seen.percent, "used": seen.total - seen.available, "total": seen.total}


def _memory_line() -> str:
    seen = memory()
    used, total = show_bytes(int(seen["used"])), show_bytes(int(seen["total"]))
    return f"System Memory: {seen['percent']:.1f}% used ({used} / {total})"


def _about(worker: dict[str, Any]) -> str:
    """One line on one worker."""
    parts = [f"{worker['model']}: {worker['state']}, pid {worker['pid']}"]
    parts.append(f"{worker['busy']} of {worker['slots']} slots busy")
    if worker["waiting"]:
        parts.append(f"{worker['waiting']} waiting")
    if worker["bytes"]:
        parts.append(show_bytes(worker["bytes"]))
    if worker["idle_seconds"] is not None:
        rest = f", goes in {_until_end(worker)}" if _until_end(worker) else ""
        parts.append(f"idle for {show_time(worker['idle_seconds'])}{rest}")
    return ", ".join(parts)


def _until_end(worker: dict[str, Any]) -> str:
    """How long it may stay idle still; empty when that does not end it."""
    return "" if worker["expires_in_seconds"] is None else show_time(worker["expires_in_seconds"])


def ps(watch: bool, as_json: bool) -> int:
    """A line for each loaded model: what it holds and how long it will."""
    return _show(_ps_lines, watch, as_json)


def stats(watch: bool, as_json: bool) -> int:
    """Context, slots and state of each loaded model, totals, and the machine's memory."""
    return _show(_stats_lines, watch, as_json)


def _ps_lines(workers: list[dict[str, Any]]) -> list[str]:
    if not workers:
        return ["no model is loaded"]
    rows = [
        [
            w["model"],
            w["state"],
            f"{w['context']:,}" if w["context"] else "",
            f"{w['busy']}/{w['slots']}",
            str(w["waiting"]),
            show_bytes(w["bytes"]),
            "" if w["idle_seconds"] is None else show_time(w["idle_seconds"]),
            _until_end(w),
            str(w["pid"]),
        ]
        for w in workers
    ]
    head = ["MODEL", "STATE", ">CTX", ">BUSY", ">WAITING", ">MEMORY", ">IDLE", ">ENDS IN", ">PID"]
    return table(head, rows)


def _stats_lines(workers: list[dict[str, Any]]) -> list[str]:
    rows = [
        [w["model"], f"{w['context']:,}" if w["context"] else "", str(w["slots"]), w["state"]]
        for w in workers
    ]
    context, slots = sum(w["context"] for w in workers), sum(w["slots"] for w in workers)
    rows.append(["TOTAL", f"{context:,}", str(slots), ""])
    lines = table(["MODEL", ">CTX", ">SLOTS", ">STATE"], rows)
    rule = "=" * max(len(line) for line in lines)
    held = sum(w["bytes"] for w in workers)
    return [
        *(rule, lines[0], rule, *lines[1:-1], rule, lines[-1], ""),
        _memory_line() + (f", {show_bytes(held)} of it by models" if held else ""),
    ]


def _show(lines: Callable[[list[dict[str, Any]]], list[str]], watch: bool, as_json: bool) -> int:
    home = find_paths()
    look: Callable[[], list[dict[str, Any]]] = lambda: get(require_running(home), "/running")[  # noqa: E731
        "running"
    ]
    if as_json:
        workers = look()
        print_json({"running": workers, "memory": memory()})
    elif watch:
        _watch(lambda: "\n".join(lines(look())))
    else:
        print("\n".join(lines(look())))
    return 0


def _watch(text: Callable[[], str]) -> None:
    """Show the text anew every second, until Ctrl-C or until it can't be had."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    pause = threading.Event()
    with Live(Text(text()), console=Console(), auto_refresh=False) as live:
        while not pause.wait(EVERY):
            live.update(Text(text()), refresh=True)
