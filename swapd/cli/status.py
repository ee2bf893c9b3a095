"""`status`, `ps`, `stats` and `logs`: the state of swapd and its loaded models."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Annotated, Any

import typer

from swapd.cli.options import Json, OptionalName, Watch
from swapd.cli.output import (
    NOT_RUNNING,
    FailedError,
    print_error,
    print_json,
    show_bytes,
    show_time,
    table,
)
from swapd.paths import find_paths

REFRESH_INTERVAL = 1.0
"""Seconds between refreshes with `--watch`."""
MAX_LISTED = 12
"""Models listed by name."""
Worker = dict[str, Any]


def status(as_json: Json = False) -> int:
    """Show whether swapd runs, and the loaded models.

    Exit status 0: it runs; 3: it does not.
    """
    from swapd.cli.client import NoResponseError, get, running

    paths = find_paths()
    holder = running(paths)
    if holder is None:
        if as_json:
            print_json({"running": False})
        else:
            print("✗ swapd is not running")
        return NOT_RUNNING
    try:
        workers = get(holder, "/running")["running"]
        names = [m["id"] for m in get(holder, "/v1/models")["data"]]
    except NoResponseError as error:
        print_error(f"pid {holder.pid} runs, but: {error}")
        return 1
    has_socket = paths.socket.is_socket()
    if as_json:
        report = {
            "running": True,
            "closing": holder.closing,
            "pid": holder.pid,
            "endpoint": holder.endpoint,
            "socket": str(paths.socket) if has_socket else None,
            "log": holder.log,
            "models": names,
            "workers": workers,
            "memory": machine_memory(),
        }
        print_json(report)
        return 0
    if holder.closing:
        print(f"✗ swapd at {holder.endpoint} (pid {holder.pid}) is shutting down: it finishes")
        print("  running requests and rejects new ones")
    else:
        print(f"✓ swapd runs at {holder.endpoint} (pid {holder.pid})")
    print(f"✓ socket {paths.socket}" if has_socket else f"✗ there is no socket {paths.socket}")
    more = " …" if len(names) > MAX_LISTED else ""
    print(f"✓ {len(names)} models: {', '.join(names[:MAX_LISTED])}{more}")
    for worker in workers:
        print(f"✓ {_describe(worker)}")
    if not workers:
        print("✗ no model is loaded; the first request loads one")
    print(f"✓ {_memory_line()}")
    return 0


def machine_memory() -> dict[str, float]:
    """Return the machine's memory: percent in use, bytes in use, bytes in total."""
    import psutil

    memory = psutil.virtual_memory()
    used = memory.total - memory.available
    return {"percent": memory.percent, "used": used, "total": memory.total}


def _memory_line() -> str:
    memory = machine_memory()
    used, total = show_bytes(int(memory["used"])), show_bytes(int(memory["total"]))
    return f"System Memory: {memory['percent']:.1f}% used ({used} / {total})"


def _describe(worker: Worker) -> str:
    """Return one line on a worker."""
    parts = [f"{worker['model']}: {worker['state']}, pid {worker['pid']}"]
    parts.append(f"{worker['busy']} of {worker['slots']} slots busy")
    if worker["waiting"]:
        parts.append(f"{worker['waiting']} waiting")
    if worker["bytes"]:
        parts.append(show_bytes(worker["bytes"]))
    if worker["idle_seconds"] is not None:
        expires = _expires_in(worker)
        rest = f", expires in {expires}" if expires else ""
        parts.append(f"idle for {show_time(worker['idle_seconds'])}{rest}")
    return ", ".join(parts)


def _expires_in(worker: Worker) -> str:
    """Return the time until an idle worker is stopped; empty for a worker without expiry."""
    return "" if worker["expires_in_seconds"] is None else show_time(worker["expires_in_seconds"])


def ps(watch: Watch = False, as_json: Json = False) -> int:
    """List the loaded models: slots, memory, time to live."""
    return _show(_ps_lines, watch, as_json)


def stats(watch: Watch = False, as_json: Json = False) -> int:
    """Show totals of the loaded models, and the machine's memory."""
    return _show(_stats_lines, watch, as_json)


def _ps_lines(workers: list[Worker]) -> list[str]:
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
            _expires_in(w),
            str(w["pid"]),
        ]
        for w in workers
    ]
    head = ["MODEL", "STATE", ">CTX", ">BUSY", ">WAITING", ">MEMORY", ">IDLE", ">ENDS IN", ">PID"]
    return table(head, rows)


def _stats_lines(workers: list[Worker]) -> list[str]:
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


def _show(format_lines: Callable[[list[Worker]], list[str]], watch: bool, as_json: bool) -> int:
    from swapd.cli.client import get, require_running

    paths = find_paths()

    def read_workers() -> list[Worker]:
        workers: list[Worker] = get(require_running(paths), "/running")["running"]
        return workers

    if as_json:
        print_json({"running": read_workers(), "memory": machine_memory()})
    elif watch:
        _watch(lambda: "\n".join(format_lines(read_workers())))
    else:
        print("\n".join(format_lines(read_workers())))
    return 0


def _watch(text: Callable[[], str]) -> None:
    """Refresh the text every second, until Ctrl-C or until swapd is gone."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    pause = threading.Event()
    with Live(Text(text()), console=Console(), auto_refresh=False) as live:
        while not pause.wait(REFRESH_INTERVAL):
            live.update(Text(text()), refresh=True)


def logs(
    model: OptionalName = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines as they are written.")
    ] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Number of last lines.", min=0)] = 50,
) -> int:
    """Print the log of swapd, or of a model's workers."""
    from swapd.cli.catalog import find_model, list_models
    from swapd.system.logs import log_file

    paths = find_paths()
    name = find_model(list_models(paths), model).name if model else ""
    path = log_file(paths.logs, name)
    if not path.is_file() and not follow:
        message = f"no worker of {name} has written a log" if name else "there is no log"
        raise FailedError(f"{message} yet: there is no {path}")
    if follow:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        # tail -F follows the name, also when the log is rotated.
        os.execvp("tail", ["tail", "-n", str(lines), "-F", str(path)])
    with path.open(encoding="utf-8", errors="replace") as file:
        sys.stdout.writelines(deque(file, lines))
    return 0
