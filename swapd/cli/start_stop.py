"""Start, serve, stop and restart. Each returns its exit status."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil

from swapd.cli.client import NoAnswerError, get, running
from swapd.cli.output import SPINNER_DELAY, FailedError, command, print_error
from swapd.cli.sync import sync_models
from swapd.library.generate import is_generated
from swapd.paths import Paths, find_paths
from swapd.system.lockfile import LockHolder, read_holder, wait_until_free

DAEMON = [sys.executable, "-I", "-m", "swapd.daemon"]


def _daemon_arguments(host: str, port: int, config: Path | None) -> list[str]:
    arguments = []
    if host:
        arguments += ["--host", host]
    if port:
        arguments += ["--port", str(port)]
    if config is not None:
        arguments += ["--config", str(config.absolute())]
    return arguments


def _prepare(home: Paths, config: Path | None, say: Callable[[str], None] = print) -> None:
    """Bring the configuration up to date where it is a sync's; raises FailedError if there is none.

    What changed is said; where a sync can't be done, what it wrote before is good enough.
    """
    if config is not None:
        if not config.is_file():
            what = f"{config} is no file" if config.exists() else f"there is no {config}"
            raise FailedError(f"{what}, so no configuration")
    elif not home.config.is_file():
        sync_models(force=False, say=say, files=False)
    elif is_generated(home.config):
        lines: list[str] = []
        try:
            if sync_models(force=False, say=lines.append, files=False).written:
                say("\n".join(lines))
        except FailedError as error:
            print_error(f"{error}\nwhat {home.config} says goes on counting")


def serve(host: str, port: int, config: Path | None) -> int:
    """Become the daemon, in the foreground. Returns only when that is not possible."""
    _prepare(find_paths(), config)
    # The command line's own libraries are left behind: the daemon is smaller without them.
    os.execv(sys.executable, [*DAEMON, *_daemon_arguments(host, port, config)])


def start(host: str, port: int, config: Path | None) -> int:
    """Start the daemon in the background; return when it answers or has failed."""
    from swapd.cli import service_manager

    home = find_paths()
    if (holder := running(home)) is not None and holder.closing:
        print_error("it is shutting down; waiting for that before starting it anew")
        wait_until_free(home.state)
        holder = None
    if holder is not None:
        print(_already(holder))
        if host or port or config:
            print_error(f"it keeps what it was started with: {command()} stop ends it")
        return 0
    _prepare(home, config)
    if service_manager.is_installed(home):
        print_error(f"nobody starts this one again if it fails; {command()} service start would")
    return _started(home, _daemon_arguments(host, port, config))


def ensure_running(home: Paths) -> LockHolder:
    """Start the daemon if it does not run, saying so on standard error. Raises FailedError."""
    if (holder := running(home)) is not None:
        return holder
    _prepare(home, None, print_error)
    _spawn(home, [])
    holder = running(home)
    if holder is None:
        raise _failure(home)
    print_error(f"started at {holder.endpoint}; {command()} stop ends it")
    return holder


def _started(home: Paths, arguments: list[str]) -> int:
    word = _spawn(home, arguments)
    holder = running(home)
    if holder is None:
        raise _failure(home)
    if "endpoint" in word:
        _introduce(holder)
        for risk in word["risks"]:
            print_error(risk)
    else:
        # Somebody else's start won the race for the lock.
        print(_already(holder))
    return 0


def _already(holder: LockHolder) -> str:
    return f"swapd runs already at {holder.endpoint} (pid {holder.pid})"


def _output(home: Paths) -> Path:
    return home.logs / "start.log"


def _failure(home: Paths) -> FailedError:
    lines = _output(home).read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    print("\n".join(lines), file=sys.stderr)
    return FailedError(f"it did not start; its output is in {_output(home)}")


def _spawn(home: Paths, arguments: list[str]) -> dict[str, Any]:
    """Start the daemon in a session of its own and hear its one word: how the start went."""
    home.logs.mkdir(parents=True, exist_ok=True)
    hear, tell = os.pipe()
    with _output(home).open("wb") as file:
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


def _introduce(holder: LockHolder) -> None:
    print(f"swapd runs at {holder.endpoint} (pid {holder.pid})")
    print(f"log     {holder.log}")
    try:
        names = [m["id"] for m in get(holder, "/v1/models")["data"]]
    except NoAnswerError as error:
        print_error(str(error))
        return
    if not names:
        print(f"models  none: put GGUF files into MODELS_DIR and run {command()} sync")
        return
    print(f"models  {', '.join(names[:12])}{' …' if len(names) > 12 else ''}")
    example = "bard" if "bard" in names else names[0]
    body = {"model": example, "messages": [{"role": "user", "content": "Who goes there?"}]}
    text = msgspec.json.format(msgspec.json.encode(body), indent=0).decode()
    quoted = shlex.quote(text)
    print(f"try     curl {holder.endpoint}/v1/chat/completions -d {quoted}")


def stop(now: bool) -> int:
    """End the daemon and wait until it is gone."""
    home = find_paths()
    if _stopped(home, now) is None:
        print("swapd is not running")
    else:
        print("swapd has stopped")
    return 0


def restart(now: bool) -> int:
    """Stop, then start with the arguments it ran with, by the service manager if that runs it."""
    from swapd.cli import service_manager

    home = find_paths()
    if (holder := running(home)) is not None:
        kept = service_manager.keeps(home, holder.pid)
        if not kept:
            _require_background(holder)
        _require_usable(home, holder, _environment(holder) if kept else os.environ)
        if kept:
            _stopped(home, now)
            return service_manager.start(dry_run=False)
        _take_over_address(holder)
    before = _stopped(home, now)
    if before is None or "--config" not in before:
        _prepare(home, None)
    return _started(home, before or [])


def _require_usable(home: Paths, holder: LockHolder, environ: Mapping[str, str]) -> None:
    """Raises FailedError where what it would be started with again can't be used."""
    from swapd.cli.config import read

    config = Path(holder.config) if holder.config else home.config
    if config == home.config and not config.exists():
        return  # The next start makes it.
    try:
        read(home, config, environ)
    except FailedError as error:
        raise FailedError(f"it was not stopped, for it could not start again: {error}") from error


def _take_over_address(holder: LockHolder) -> None:
    """The environment that it was started in may have said where it listens; ours, if it does
    too, is heeded first."""
    environ = _environment(holder)
    for names in (("SWAPD_HOST",), ("SWAPD_PORT", "LLAMA_SWAP_PORT")):
        if not any(os.environ.get(name) for name in names):
            os.environ.update({name: environ[name] for name in names if environ.get(name)})


def _environment(holder: LockHolder) -> dict[str, str]:
    """What it was started in; nothing where the system does not tell."""
    process = holder.alive()
    try:
        return process.environ() if process is not None else {}
    except psutil.Error:
        return {}


def _require_background(holder: LockHolder) -> None:
    """Raises FailedError where somebody else holds it in the foreground, who should restart it."""
    process = holder.alive()
    if process is not None and "--ready-fd" not in process.cmdline():
        parent = process.parent()
        whose = f" of {parent.name()} (pid {parent.pid})" if parent is not None else ""
        raise FailedError(
            f"swapd (pid {holder.pid}) runs in the foreground{whose}: restart it there,"
            f" or end it with {command()} stop and then {command()} start"
        )


def _stopped(home: Paths, now: bool) -> list[str] | None:
    """End the daemon; the arguments it ran with, or None when it did not run."""
    holder = read_holder(home.state)
    process = holder.alive() if holder is not None else None
    if process is None:
        return None
    arguments = process.cmdline()[len(DAEMON) :]
    if "--ready-fd" in arguments:
        at = arguments.index("--ready-fd")
        del arguments[at : at + 2]
    if now:
        process.send_signal(signal.SIGQUIT)
    elif holder is not None and not holder.closing:
        # A second SIGTERM would mean "at once", which nobody has asked for.
        process.send_signal(signal.SIGTERM)
    hint = f"running requests to end; {command()} stop --now does not wait for them"
    told = f"waiting for {'the workers to be gone' if now else hint}"
    reminder = threading.Timer(SPINNER_DELAY, print, [told])
    reminder.start()
    wait_until_free(home.state)
    reminder.cancel()
    return arguments
