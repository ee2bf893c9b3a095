"""Start, serve, stop, status and sync. Each returns its exit status."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from swapd.doors.cli.client import NoAnswerError, get
from swapd.effects.lock import Holder, read_holder, wait_until_free
from swapd.home import Home, demo_folder, find_home

DAEMON = [sys.executable, "-m", "swapd.doors.daemon"]
NOT_RUNNING = 3
PATIENCE = 1.0
"""Seconds after which somebody who waits is told what for."""


def _command() -> str:
    """How this program is called by whoever reads the message."""
    return os.environ.get("SWAPD_COMMAND", "swapd")


def _complain(message: str) -> None:
    print(f"swapd: {message}", file=sys.stderr)


def _running(home: Home) -> Holder | None:
    holder = read_holder(home.state)
    return holder if holder is not None and holder.alive() else None


# -- start and serve ---------------------------------------------------------------------------


def _daemon_arguments(host: str, port: int, config: Path | None) -> list[str]:
    arguments = []
    if host:
        arguments += ["--host", host]
    if port:
        arguments += ["--port", str(port)]
    if config is not None:
        arguments += ["--config", str(config.absolute())]
    return arguments


def _prepare(home: Home, config: Path | None) -> bool:
    """See to it that there is a configuration; whether there is one."""
    if config is not None:
        if not config.is_file():
            _complain(f"there is no configuration {config}")
        return config.is_file()
    return home.config.is_file() or sync(force=False) == 0


def serve(host: str, port: int, config: Path | None) -> int:
    """Become the daemon, in the foreground. Returns only when that is not possible."""
    home = find_home()
    if _prepare(home, config):
        # The command line's own libraries are left behind: the daemon is smaller without them.
        os.execv(sys.executable, [*DAEMON, *_daemon_arguments(host, port, config)])
    return 1


def start(host: str, port: int, config: Path | None) -> int:
    """Start the daemon in the background; return when it answers or has failed."""
    home = find_home()
    if (holder := _running(home)) is not None:
        print(f"swapd runs already at {holder.endpoint} (pid {holder.pid})")
        return 0
    if not _prepare(home, config):
        return 1
    home.logs.mkdir(parents=True, exist_ok=True)
    output = home.logs / "start.log"
    word = _spawn(output, _daemon_arguments(host, port, config))
    if (holder := _running(home)) is not None and "endpoint" in word:
        _introduce(holder)
        return 0
    if holder is not None:
        # Somebody else's start won the race for the lock.
        print(f"swapd runs already at {holder.endpoint} (pid {holder.pid})")
        return 0
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    print("\n".join(lines), file=sys.stderr)
    _complain(f"it did not start; its output is in {output}")
    return 1


def _spawn(output: Path, arguments: list[str]) -> dict[str, Any]:
    """Start the daemon in a session of its own and hear its one word: how the start went."""
    hear, tell = os.pipe()
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*DAEMON, "--ready-fd", str(tell), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=(tell,),
            start_new_session=True,
        )
    os.close(tell)
    with os.fdopen(hear, "rb") as pipe:
        line = pipe.readline()
    word: dict[str, Any] = msgspec.json.decode(line) if line.endswith(b"\n") else {}
    if "endpoint" not in word:
        process.wait()  # So that all it has to say is written.
    return word


def _introduce(holder: Holder) -> None:
    print(f"swapd runs at {holder.endpoint} (pid {holder.pid})")
    print(f"log     {holder.log}")
    try:
        names = [m["id"] for m in get(holder, "/v1/models")["data"]]
    except NoAnswerError as error:
        _complain(str(error))
        return
    if not names:
        print(f"models  none: put GGUF files into MODELS_DIR and run {_command()} sync")
        return
    print(f"models  {', '.join(names[:12])}{' …' if len(names) > 12 else ''}")
    example = "bard" if "bard" in names else names[0]
    body = {"model": example, "messages": [{"role": "user", "content": "Who goes there?"}]}
    text = msgspec.json.format(msgspec.json.encode(body), indent=0).decode()
    quoted = shlex.quote(text)
    print(f"try     curl {holder.endpoint}/v1/chat/completions -d {quoted}")


# -- stop --------------------------------------------------------------------------------------


def stop(now: bool) -> int:
    """End the daemon and wait until it is gone."""
    home = find_home()
    holder = read_holder(home.state)
    process = holder.alive() if holder is not None else None
    if process is None:
        print("swapd is not running")
        return 0
    process.send_signal(signal.SIGQUIT if now else signal.SIGTERM)
    told = f"waiting for running requests to end; {_command()} stop --now does not wait"
    reminder = threading.Timer(PATIENCE, print, [told])
    reminder.start()
    wait_until_free(home.state)
    reminder.cancel()
    print("swapd has stopped")
    return 0


# -- status ------------------------------------------------------------------------------------


def status(as_json: bool) -> int:
    """Say whether it runs, where, and what is loaded."""
    home = find_home()
    holder = _running(home)
    if holder is None:
        print(msgspec.json.encode({"running": False}).decode() if as_json else _NOT)
        return NOT_RUNNING
    try:
        workers = get(holder, "/running")["running"]
        names = [m["id"] for m in get(holder, "/v1/models")["data"]]
    except NoAnswerError as error:
        _complain(f"pid {holder.pid} runs, but: {error}")
        return 1
    if as_json:
        told = {
            "running": True,
            "pid": holder.pid,
            "endpoint": holder.endpoint,
            "log": holder.log,
            "models": names,
            "workers": workers,
        }
        print(msgspec.json.encode(told).decode())
        return 0
    print(f"✓ swapd runs at {holder.endpoint} (pid {holder.pid})")
    print(f"✓ {len(names)} models: {', '.join(names[:12])}{' …' if len(names) > 12 else ''}")
    for worker in workers:
        print(f"✓ {_about(worker)}")
    if not workers:
        print("✗ no model is loaded; the first request loads one")
    return 0


_NOT = "✗ swapd is not running"


def _about(worker: dict[str, Any]) -> str:
    """One line on one worker."""
    parts = [f"{worker['model']}: {worker['state']}, pid {worker['pid']}"]
    parts.append(f"{worker['busy']} of {worker['slots']} slots busy")
    if worker["waiting"]:
        parts.append(f"{worker['waiting']} waiting")
    if worker["bytes"]:
        parts.append(f"{worker['bytes'] / 2**20:,.0f} MiB")
    if worker["idle_seconds"] is not None:
        idle = worker["idle_seconds"]
        rest = f", goes in {max(0.0, worker['ttl'] - idle):.0f} s" if worker["ttl"] else ""
        parts.append(f"idle for {idle:.0f} s{rest}")
    return ", ".join(parts)


# -- sync --------------------------------------------------------------------------------------


def sync(force: bool) -> int:
    """Bring config.yaml up to date with the models there are, and say what changed."""
    from swapd.config.problems import ConfigError
    from swapd.config.sync import sync as bring_up_to_date
    from swapd.effects import clock, memory

    home = find_home()
    home.folder.mkdir(parents=True, exist_ok=True)
    try:
        report = bring_up_to_date(
            home.folder,
            os.environ,
            demo_folder(),
            now=clock.wall(),
            total_memory=memory.total(),
            force=force,
        )
    except ConfigError as error:
        _complain(f"nothing was changed:\n{error}")
        return 1
    for verb, names in (
        ("added", report.added),
        ("changed", report.changed),
        ("removed", report.removed),
    ):
        for name in names:
            print(f"{verb:8}{name}")
    for verb, files in (("broken", report.broken), ("skipped", report.skipped)):
        for file in files:
            print(f"{verb:8}{file.path}: {file.reason}")
    for warning in report.warnings:
        _complain(str(warning))
    print(f"config  {report.path} {'changed' if report.written else 'unchanged'}")
    return 0
