"""`start`, `serve`, `stop` and `restart`."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swapd.cli.options import Config, Host, Now, Port
from swapd.cli.output import SPINNER_DELAY, FailedError, command, print_error
from swapd.paths import Paths, find_paths

if TYPE_CHECKING:
    from swapd.system.lockfile import LockHolder

DAEMON = [sys.executable, "-I", "-m", "swapd.daemon"]
MAX_LISTED = 12
"""Models listed by name."""
LOG_TAIL = 15
"""Lines of the daemon's output that a failed start shows."""


def start(host: Host = "", port: Port = None, config: Config = None) -> int:
    """Start swapd in the background and wait until it is ready."""
    from swapd.cli.client import running
    from swapd.cli.service import is_installed
    from swapd.system.lockfile import wait_until_free

    paths = find_paths()
    if (holder := running(paths)) is not None and holder.closing:
        print_error("swapd is shutting down; it is started again after that")
        wait_until_free(paths.state)
        holder = None
    if holder is not None:
        print(_already_running(holder))
        if host or port or config:
            print_error(f"it keeps the options it was started with: {command()} stop ends it")
        return 0
    _prepare_config(paths, config)
    if is_installed(paths):
        managed = f"with {command()} service start it would be"
        print_error(f"this swapd is not restarted after a failure; {managed}")
    return _start_and_report(paths, _daemon_arguments(host, port, config))


def serve(host: Host = "", port: Port = None, config: Config = None) -> int:
    """Run swapd in the foreground, for service managers."""
    _prepare_config(find_paths(), config)
    # exec drops the libraries of the command line: the daemon needs less memory without them.
    os.execv(sys.executable, [*DAEMON, *_daemon_arguments(host, port, config)])


def stop(now: Now = False) -> int:
    """Stop swapd and its workers after the running requests."""
    if _stop(find_paths(), now) is None:
        print("swapd is not running")
    else:
        print("swapd has stopped")
    return 0


def restart(now: Now = False) -> int:
    """Stop swapd and start it again with the same options."""
    from swapd.cli import service
    from swapd.cli.client import running

    paths = find_paths()
    if (holder := running(paths)) is not None:
        managed = service.is_managed(paths, holder.pid)
        if not managed:
            _require_background(holder)
        _require_usable_config(paths, holder, _environment(holder) if managed else os.environ)
        if managed:
            _stop(paths, now)
            return service.start()
        _restore_address(holder)
    arguments = _stop(paths, now)
    if arguments is None or "--config" not in arguments:
        _prepare_config(paths, None)
    return _start_and_report(paths, arguments or [])


def ensure_running(paths: Paths) -> LockHolder:
    """Start the daemon if it does not run, and report that on standard error.

    Raises FailedError.
    """
    from swapd.cli.client import running

    if (holder := running(paths)) is not None:
        return holder
    _prepare_config(paths, None, print_error)
    _spawn(paths, [])
    holder = running(paths)
    if holder is None:
        raise _start_failure(paths)
    print_error(f"started at {holder.endpoint}; {command()} stop ends it")
    return holder


def _daemon_arguments(host: str, port: int | None, config: Path | None) -> list[str]:
    arguments = []
    if host:
        arguments += ["--host", host]
    if port:
        arguments += ["--port", str(port)]
    if config is not None:
        arguments += ["--config", str(config.absolute())]
    return arguments


def _prepare_config(
    paths: Paths, config: Path | None, output: Callable[[str], None] = print
) -> None:
    """Sync a generated or missing config.yaml. Raises FailedError when there is no configuration.

    Changes are reported. A failed sync leaves the last generated configuration in use.
    """
    from swapd.cli.sync import run_sync
    from swapd.library.generate import is_generated

    if config is not None:
        if not config.is_file():
            reason = f"{config} is no file" if config.exists() else f"there is no {config}"
            raise FailedError(f"{reason}, so no configuration")
    elif not paths.config.is_file():
        run_sync(output=output, files=False)
    elif is_generated(paths.config):
        lines: list[str] = []
        try:
            if run_sync(output=lines.append, files=False).written:
                output("\n".join(lines))
        except FailedError as error:
            print_error(f"{error}\n{paths.config} stays in use as it is")


def _start_and_report(paths: Paths, arguments: list[str]) -> int:
    from swapd.cli.client import running

    message = _spawn(paths, arguments)
    holder = running(paths)
    if holder is None:
        raise _start_failure(paths)
    if "endpoint" in message:
        _print_introduction(holder)
        for risk in message["risks"]:
            print_error(risk)
    else:
        # A concurrent start won the race for the lock.
        print(_already_running(holder))
    return 0


def _already_running(holder: LockHolder) -> str:
    return f"swapd runs already at {holder.endpoint} (pid {holder.pid})"


def _output_file(paths: Paths) -> Path:
    return paths.logs / "start.log"


def _start_failure(paths: Paths) -> FailedError:
    output = _output_file(paths)
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:]
    print("\n".join(lines), file=sys.stderr)
    return FailedError(f"it did not start; its output is in {output}")


def _spawn(paths: Paths, arguments: list[str]) -> dict[str, Any]:
    """Start the daemon in its own process group; return its ready message, empty if it failed."""
    import msgspec

    paths.logs.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    with _output_file(paths).open("wb") as file:
        process = subprocess.Popen(
            [*DAEMON, "--ready-fd", str(writer), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=(writer,),
            start_new_session=True,
        )
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        line = pipe.readline()
    message: dict[str, Any] = msgspec.json.decode(line) if line.endswith(b"\n") else {}
    if "endpoint" not in message:
        process.wait()  # After its end, its output is complete.
    return message


def _print_introduction(holder: LockHolder) -> None:
    """Print address, log, models and a command to try."""
    import msgspec

    from swapd.cli.client import NoResponseError, get

    print(f"swapd runs at {holder.endpoint} (pid {holder.pid})")
    print(f"log     {holder.log}")
    try:
        names = [m["id"] for m in get(holder, "/v1/models")["data"]]
    except NoResponseError as error:
        print_error(str(error))
        return
    if not names:
        print(f"models  none: put GGUF files into MODELS_DIR and run {command()} sync")
        return
    more = " …" if len(names) > MAX_LISTED else ""
    print(f"models  {', '.join(names[:MAX_LISTED])}{more}")
    example = "bard" if "bard" in names else names[0]
    body = {"model": example, "messages": [{"role": "user", "content": "Who goes there?"}]}
    text = msgspec.json.format(msgspec.json.encode(body), indent=0).decode()
    print(f"try     curl {holder.endpoint}/v1/chat/completions -d {shlex.quote(text)}")


def _require_usable_config(paths: Paths, holder: LockHolder, environ: Mapping[str, str]) -> None:
    """Raise FailedError when swapd could not start again with its configuration."""
    from swapd.cli.catalog import read_config

    config = Path(holder.config) if holder.config else paths.config
    if config == paths.config and not config.exists():
        return  # The next start creates it.
    try:
        read_config(paths, config, environ)
    except FailedError as error:
        message = f"swapd was not stopped, since it could not start again: {error}"
        raise FailedError(message) from error


def _restore_address(holder: LockHolder) -> None:
    """Copy the address variables of the running swapd, unless the environment sets them."""
    environ = _environment(holder)
    for names in (("SWAPD_HOST",), ("SWAPD_PORT", "LLAMA_SWAP_PORT")):
        if not any(os.environ.get(name) for name in names):
            os.environ.update({name: environ[name] for name in names if environ.get(name)})


def _environment(holder: LockHolder) -> dict[str, str]:
    """Return the environment of the running swapd; empty where the system does not allow it."""
    import psutil

    process = holder.alive()
    try:
        return process.environ() if process is not None else {}
    except psutil.Error:
        return {}


def _require_background(holder: LockHolder) -> None:
    """Raise FailedError for a swapd in the foreground, which its parent should restart."""
    process = holder.alive()
    if process is not None and "--ready-fd" not in process.cmdline():
        parent = process.parent()
        suffix = f" of {parent.name()} (pid {parent.pid})" if parent is not None else ""
        raise FailedError(
            f"swapd (pid {holder.pid}) runs in the foreground{suffix}: restart it there,"
            f" or end it with {command()} stop and then {command()} start"
        )


def _stop(paths: Paths, now: bool) -> list[str] | None:
    """Stop the daemon; return its arguments, or None when it did not run."""
    from swapd.system.lockfile import read_holder, wait_until_free

    holder = read_holder(paths.state)
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
        # A second SIGTERM would abort the running requests.
        process.send_signal(signal.SIGTERM)
    hint = f"running requests to end; {command()} stop --now does not wait for them"
    message = f"waiting for {'the workers to exit' if now else hint}"
    reminder = threading.Timer(SPINNER_DELAY, print, [message])
    reminder.start()
    wait_until_free(paths.state)
    reminder.cancel()
    return arguments
