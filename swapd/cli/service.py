"""`service`: run swapd under launchd on macOS or a systemd user unit on Linux."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from swapd.cli.output import FailedError, command, print_error, require_one_line
from swapd.paths import Paths, find_paths, template_directory

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the files and commands without running them.")
]
UNIT = "swapd.service"
START_TIMEOUT = 60.0
"""Seconds until the service must respond; systemd waits by itself, launchd does not."""
NOT_INSTALLED = 3
"""Exit status of `service status` without a service."""
_PID = r"(?m)(?:^MainPID=|^\s*pid = )([1-9]\d*)$"
"""Pattern of the main process in the output of both managers."""
Command = tuple[str, ...]


class Manager(NamedTuple):
    """Commands and service file of a service manager."""

    file: Path
    """Path of the service file of this user."""
    text: str
    """Content of the service file."""
    install: tuple[Command, ...]
    """Commands after the file is written."""
    uninstall: tuple[Command, ...]
    """Commands before the file is removed; may fail when nothing runs."""
    after: tuple[Command, ...]
    """Commands after the file is removed."""
    start: Command
    stop: Command
    status: Command
    pid: Command
    """Command that prints the pid of the main process, in the form of `_PID`."""
    linger: Command = ()
    """Command that lets the user's services run without a login; empty: not needed."""


def group() -> typer.Typer:
    """Return the group of commands about the service."""
    app = typer.Typer(
        help="Let launchd or systemd run swapd, from every login on.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    app.command("install")(install)
    app.command("uninstall")(uninstall)
    app.command("start")(start)
    app.command("stop")(stop)
    app.command("status")(status)
    return app


def render(template: str, paths: Paths, quote: Callable[[str], str]) -> str:
    """Fill in the placeholders of a template, each quoted by `quote`."""
    text = (template_directory() / template).read_text(encoding="utf-8")
    for name, value in {
        "PYTHON": sys.executable,
        "HOME": str(paths.folder),
        "COMMAND": command(),
        "PATH": os.environ.get("PATH", os.defpath),
    }.items():
        text = text.replace(f"@{name}@", quote(require_one_line(value)))
    return text


def systemd(paths: Paths, environ: Mapping[str, str]) -> Manager:
    """Return the manager for a systemd unit of this user."""
    folder = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    systemctl = ("systemctl", "--user")
    return Manager(
        file=folder / "systemd/user" / UNIT,
        text=render(f"systemd/{UNIT}", paths, quote_for_systemd),
        install=((*systemctl, "daemon-reload"), (*systemctl, "enable", "--now", UNIT)),
        uninstall=((*systemctl, "disable", "--now", UNIT),),
        after=((*systemctl, "daemon-reload"),),
        start=(*systemctl, "start", UNIT),
        stop=(*systemctl, "stop", UNIT),
        status=(*systemctl, "--no-pager", "status", UNIT),
        pid=(*systemctl, "show", "--property=MainPID", UNIT),
        linger=("loginctl", "enable-linger"),
    )


def quote_for_systemd(text: str) -> str:
    """Escape the text for quotes in a unit, where `$` has no meaning."""
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%")):
        text = text.replace(character, escaped)
    return text


def launchd(paths: Paths) -> Manager:
    """Return the manager for a launchd agent of this user."""
    from xml.sax.saxutils import escape

    domain = f"gui/{os.getuid()}"
    file = Path.home() / "Library/LaunchAgents/swapd.plist"
    return Manager(
        file=file,
        text=render("launchd/swapd.plist", paths, escape),
        install=(("launchctl", "bootstrap", domain, str(file)),),
        uninstall=(("launchctl", "bootout", f"{domain}/swapd"),),
        after=(),
        start=("launchctl", "kickstart", f"{domain}/swapd"),
        stop=("launchctl", "kill", "SIGTERM", f"{domain}/swapd"),
        status=("launchctl", "print", f"{domain}/swapd"),
        pid=("launchctl", "print", f"{domain}/swapd"),
    )


def _manager(paths: Paths) -> Manager:
    return launchd(paths) if sys.platform == "darwin" else systemd(paths, os.environ)


def install(dry_run: DryRun = False) -> int:
    """Install the service and start it."""
    from swapd.cli.client import running

    paths = find_paths()
    manager = _manager(paths)
    if dry_run:
        print(f"# {manager.file}\n{manager.text}")
        for words in (*manager.install, manager.linger):
            if words:
                print(f"# then: {shlex.join(words)}")
        return 0
    _require(manager)
    holder = running(paths)
    if holder is not None and not manager.file.exists():
        message = f"swapd runs already (pid {holder.pid}); end it first: {command()} stop"
        raise FailedError(message)
    before = manager.file.read_bytes() if manager.file.exists() else None
    if before == manager.text.encode():
        print(f"installed already: {manager.file}")
        return start()
    if before is not None:
        # A changed file takes effect only when the service is started again.
        for words in manager.uninstall:
            _try(words, report=False)
    manager.file.parent.mkdir(parents=True, exist_ok=True)
    manager.file.write_text(manager.text, encoding="utf-8")
    try:
        for words in manager.install:
            _run(words)
    except FailedError:
        if before is None:
            _remove(manager, report=False)
        else:
            manager.file.write_bytes(before)
        raise
    print(f"installed {manager.file}")
    _print_address(paths)
    _enable_linger(manager)
    return 0


def _print_address(paths: Paths) -> None:
    """Wait until the service responds, and print its address. Raises FailedError."""
    from swapd.cli.client import running

    pause = threading.Event()
    for _ in range(int(START_TIMEOUT / 0.1)):
        if (holder := running(paths)) is not None:
            print(f"swapd runs at {holder.endpoint} (pid {holder.pid})")
            return
        pause.wait(0.1)
    message = f"the service does not respond after {START_TIMEOUT:g} s"
    raise FailedError(f"{message}: see {command()} service status and {paths.logs / 'swapd.log'}")


def _enable_linger(manager: Manager) -> None:
    """Let the service run without a login, where that needs a command, which may be denied."""
    if not manager.linger:
        return
    try:
        _run(manager.linger)
    except FailedError as error:
        print_error(f"it will run only while you are logged in: {error}")
    else:
        print("it runs from the boot of the machine on, also while you are not logged in")


def uninstall(dry_run: DryRun = False) -> int:
    """Stop the service and remove it."""
    manager = _manager(find_paths())
    if dry_run:
        for words in (*manager.uninstall, ("rm", str(manager.file)), *manager.after):
            print(f"# {shlex.join(words)}")
        return 0
    if not manager.file.exists():
        print("the service is not installed")
        return 0
    _require(manager)
    _remove(manager, report=True)
    print(f"removed {manager.file}")
    return 0


def _remove(manager: Manager, report: bool) -> None:
    """Stop the service and remove its file; failed commands are reported on request."""
    for words in manager.uninstall:
        _try(words, report)
    manager.file.unlink()
    for words in manager.after:
        _try(words, report)


def _try(words: Command, report: bool) -> None:
    try:
        _run(words)
    except FailedError as error:
        if report:
            print_error(str(error))


def start(dry_run: DryRun = False) -> int:
    """Start the installed service."""
    from swapd.cli.client import running

    paths = find_paths()
    manager = _manager(paths)
    if dry_run:
        print(f"# {shlex.join(manager.start)}")
        return 0
    if (holder := running(paths)) is not None:
        print(f"swapd runs already at {holder.endpoint} (pid {holder.pid})")
        return 0
    _require_installed(manager)
    _run(manager.start)
    _print_address(paths)
    return 0


def is_installed(paths: Paths) -> bool:
    """Return True if this user has a service, for this data directory or another."""
    return _manager(paths).file.exists()


def is_managed(paths: Paths, pid: int) -> bool:
    """Return True if the service manager runs this process."""
    manager = _manager(paths)
    if not manager.file.exists() or shutil.which(manager.pid[0]) is None:
        return False
    done = subprocess.run(manager.pid, capture_output=True, text=True, check=False)
    return str(pid) in re.findall(_PID, done.stdout)


def stop(dry_run: DryRun = False) -> int:
    """Stop the service; it stays installed."""
    manager = _manager(find_paths())
    if dry_run:
        print(f"# {shlex.join(manager.stop)}")
        return 0
    _require_installed(manager)
    _run(manager.stop)
    print("the service was stopped")
    return 0


def status(dry_run: DryRun = False) -> int:
    """Show the status from the service manager.

    Exit status 3: not installed.
    """
    manager = _manager(find_paths())
    if dry_run:
        print(f"# {shlex.join(manager.status)}")
        return 0
    if not manager.file.exists():
        print("✗ the service is not installed")
        return NOT_INSTALLED
    _require(manager)
    print(f"✓ {manager.file}", flush=True)
    return subprocess.run(manager.status, check=False).returncode


def _require_installed(manager: Manager) -> None:
    if not manager.file.exists():
        message = f"the service is not installed; {command()} service install installs it"
        raise FailedError(message)
    _require(manager)


def _require(manager: Manager) -> None:
    tool = manager.start[0]
    if shutil.which(tool) is None:
        message = f"there is no {tool} on this machine; {command()} cron install needs none"
        raise FailedError(message)


def _run(words: Sequence[str]) -> None:
    """Run a command of the service manager. Raises FailedError with its output."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise FailedError(f"there is no {words[0]} on this machine") from error
    if done.returncode != 0:
        output = (done.stderr or done.stdout).strip().replace("\n", " ")
        raise FailedError(f"{shlex.join(words)} failed: {output or done.returncode}")
