"""swapd under the system's own service manager: launchd on macOS, a systemd user unit on Linux."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from swapd.cli.client import running
from swapd.cli.output import FailedError, command, print_error
from swapd.paths import Paths, find_paths, template_directory

UNIT = "swapd.service"
UP = 60.0
"""Seconds in which a service answers; systemd waits by itself, launchd does not."""
_PID = re.compile(r"(?:^MainPID=|^\s*pid = )([1-9]\d*)$", re.MULTILINE)
Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manager:
    """How one service manager is told things."""

    file: Path
    """Where it looks for services of this user."""
    text: str
    install: tuple[Command, ...]
    """After the file is there."""
    uninstall: tuple[Command, ...]
    """Before the file goes; may fail where there is nothing to end."""
    after: tuple[Command, ...]
    """After the file is gone."""
    start: Command
    stop: Command
    status: Command
    pid: Command
    """Answers with the main process, as `_PID` finds it."""
    linger: Command = ()
    """Lets services of a user run while he is not logged in."""


def rendered(template: str, home: Paths, quoted: Callable[[str], str]) -> str:
    """A template with its placeholders filled in, each as `quoted` makes it fit."""
    text = (template_directory() / template).read_text(encoding="utf-8")
    for name, value in {
        "PYTHON": sys.executable,
        "HOME": str(home.folder),
        "COMMAND": command(),
        "PATH": os.environ.get("PATH", os.defpath),
    }.items():
        text = text.replace(f"@{name}@", quoted(value))
    return text


def systemd(home: Paths, environ: Mapping[str, str]) -> Manager:
    """A unit of this user's."""
    folder = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    tell = ("systemctl", "--user")
    return Manager(
        file=folder / "systemd/user" / UNIT,
        text=rendered(f"systemd/{UNIT}", home, quoted_for_systemd),
        install=((*tell, "daemon-reload"), (*tell, "enable", "--now", UNIT)),
        uninstall=((*tell, "disable", "--now", UNIT),),
        after=((*tell, "daemon-reload"),),
        start=(*tell, "start", UNIT),
        stop=(*tell, "stop", UNIT),
        status=(*tell, "--no-pager", "status", UNIT),
        pid=(*tell, "show", "--property=MainPID", UNIT),
        linger=("loginctl", "enable-linger"),
    )


def quoted_for_systemd(text: str) -> str:
    """Between quotes in a unit: as it is, whatever is in it. `$` means nothing there."""
    for character, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%")):
        text = text.replace(character, written)
    return text


def launchd(home: Paths) -> Manager:
    """An agent of this user's."""
    domain = f"gui/{os.getuid()}"
    file = Path.home() / "Library/LaunchAgents/swapd.plist"
    return Manager(
        file=file,
        text=rendered("launchd/swapd.plist", home, escape),
        install=(("launchctl", "bootstrap", domain, str(file)),),
        uninstall=(("launchctl", "bootout", f"{domain}/swapd"),),
        after=(),
        start=("launchctl", "kickstart", f"{domain}/swapd"),
        stop=("launchctl", "kill", "SIGTERM", f"{domain}/swapd"),
        status=("launchctl", "print", f"{domain}/swapd"),
        pid=("launchctl", "print", f"{domain}/swapd"),
    )


def _manager(home: Paths) -> Manager:
    return launchd(home) if sys.platform == "darwin" else systemd(home, os.environ)


def install(dry_run: bool) -> int:
    """Write the service's file, and have it started now and at every login."""
    home = find_paths()
    manager = _manager(home)
    if dry_run:
        print(f"# {manager.file}\n{manager.text}")
        for words in (*manager.install, manager.linger):
            if words:
                print(f"# then: {shlex.join(words)}")
        return 0
    _require(manager)
    holder = running(home)
    if holder is not None and not manager.file.exists():
        message = f"swapd runs already (pid {holder.pid}); end it first: {command()} stop"
        raise FailedError(message)
    before = manager.file.read_bytes() if manager.file.exists() else None
    if before == manager.text.encode():
        print(f"installed already: {manager.file}")
        return start(dry_run=False)
    if before is not None:
        # Another text counts for a service that is begun anew.
        for words in manager.uninstall:
            _try(words, told=False)
    manager.file.parent.mkdir(parents=True, exist_ok=True)
    manager.file.write_text(manager.text, encoding="utf-8")
    try:
        for words in manager.install:
            _run(words)
    except FailedError:
        if before is None:
            _remove(manager, told=False)
        else:
            manager.file.write_bytes(before)
        raise
    print(f"installed {manager.file}")
    _tell_where(home)
    _linger(manager)
    return 0


def _tell_where(home: Paths) -> None:
    """Wait until the service answers, and say at which address. Raises FailedError."""
    pause = threading.Event()
    for _ in range(int(UP / 0.1)):
        if (holder := running(home)) is not None:
            print(f"swapd runs at {holder.endpoint} (pid {holder.pid})")
            return
        pause.wait(0.1)
    message = f"the service does not answer after {UP:g} s"
    raise FailedError(f"{message}: see {command()} service status and {home.logs / 'swapd.log'}")


def _linger(manager: Manager) -> None:
    """Have it run without a login too, where that is a wish of its own and may be refused."""
    if not manager.linger:
        return
    try:
        _run(manager.linger)
    except FailedError as error:
        print_error(f"it will run only while you are logged in: {error}")
    else:
        print("it runs from the start of the machine on, also while you are not logged in")


def uninstall(dry_run: bool) -> int:
    """End the service and take its file away."""
    manager = _manager(find_paths())
    if dry_run:
        for words in (*manager.uninstall, ("rm", str(manager.file)), *manager.after):
            print(f"# {shlex.join(words)}")
        return 0
    if not manager.file.exists():
        print("the service is not installed")
        return 0
    _require(manager)
    _remove(manager, told=True)
    print(f"removed {manager.file}")
    return 0


def _remove(manager: Manager, told: bool) -> None:
    """End the service as far as it goes, and take its file away."""
    for words in manager.uninstall:
        _try(words, told)
    manager.file.unlink()
    for words in manager.after:
        _try(words, told)


def _try(words: Command, told: bool) -> None:
    try:
        _run(words)
    except FailedError as error:
        if told:
            print_error(str(error))


def start(dry_run: bool) -> int:
    """Start the service, unless a swapd of this home runs already."""
    home = find_paths()
    manager = _manager(home)
    if dry_run:
        print(f"# {shlex.join(manager.start)}")
        return 0
    if (holder := running(home)) is not None:
        print(f"swapd runs already at {holder.endpoint} (pid {holder.pid})")
        return 0
    _require_installed(manager)
    _run(manager.start)
    _tell_where(home)
    return 0


def is_installed(home: Paths) -> bool:
    """Whether there is a service for this user, of this home or another."""
    return _manager(home).file.exists()


def keeps(home: Paths, pid: int) -> bool:
    """Whether the service manager runs this process."""
    manager = _manager(home)
    if not manager.file.exists() or shutil.which(manager.pid[0]) is None:
        return False
    done = subprocess.run(manager.pid, capture_output=True, text=True, check=False)
    return str(pid) in _PID.findall(done.stdout)


def stop(dry_run: bool) -> int:
    """End the service until it is started or the user logs in again."""
    manager = _manager(find_paths())
    if dry_run:
        print(f"# {shlex.join(manager.stop)}")
        return 0
    _require_installed(manager)
    _run(manager.stop)
    print("the service was stopped")
    return 0


def status(dry_run: bool) -> int:
    """What the service manager says of it, with its exit status; 3: it is not installed."""
    manager = _manager(find_paths())
    if dry_run:
        print(f"# {shlex.join(manager.status)}")
        return 0
    if not manager.file.exists():
        print("✗ the service is not installed")
        return 3
    _require(manager)
    print(f"✓ {manager.file}", flush=True)
    return subprocess.run(manager.status, check=False).returncode


def _require_installed(manager: Manager) -> None:
    if not manager.file.exists():
        message = f"the service is not installed; {command()} service install does that"
        raise FailedError(message)
    _require(manager)


def _require(manager: Manager) -> None:
    tool = manager.start[0]
    if shutil.which(tool) is None:
        message = f"there is no {tool} on this machine; {command()} cron install works without"
        raise FailedError(message)


def _run(words: Sequence[str]) -> None:
    """Tell the service manager; raises FailedError with what it answers."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise FailedError(f"there is no {words[0]} on this machine") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().replace("\n", " ")
        raise FailedError(f"{shlex.join(words)} failed: {said or done.returncode}")
