"""Commands that have the system keep swapd running: their options, and no more.

The fallback where there is no service manager: cron calls `start` every hour.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import Annotated

import typer

from swapd.cli.output import FailedError, command
from swapd.paths import Paths, find_paths

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, do nothing.")]

SERVICE = "Have launchd or systemd run swapd, from every login on."
CRON = "Have cron start swapd every hour."


def service_install(dry_run: DryRun = False) -> None:
    """Install the service and start it."""
    from swapd.cli import service_manager

    raise typer.Exit(service_manager.install(dry_run))


def service_uninstall(dry_run: DryRun = False) -> None:
    """Stop the service and remove it."""
    from swapd.cli import service_manager

    raise typer.Exit(service_manager.uninstall(dry_run))


def service_start(dry_run: DryRun = False) -> None:
    """Start the installed service."""
    from swapd.cli import service_manager

    raise typer.Exit(service_manager.start(dry_run))


def service_stop(dry_run: DryRun = False) -> None:
    """Stop it; it stays installed."""
    from swapd.cli import service_manager

    raise typer.Exit(service_manager.stop(dry_run))


def service_status(dry_run: DryRun = False) -> None:
    """Show what the service manager says.

    Exit status 3: not installed.
    """
    from swapd.cli import service_manager

    raise typer.Exit(service_manager.status(dry_run))


def cron_install(dry_run: DryRun = False) -> None:
    """Add the line to your crontab, and start swapd now."""

    raise typer.Exit(install(dry_run))


def cron_uninstall(dry_run: DryRun = False) -> None:
    """Take the line out again; a swapd that runs goes on."""

    raise typer.Exit(uninstall(dry_run))


def cron_status() -> None:
    """Show the line.

    Exit status 3: there is none.
    """

    raise typer.Exit(status())


def groups() -> dict[str, typer.Typer]:
    """The two groups of commands by name."""
    service = typer.Typer(help=SERVICE, no_args_is_help=True, rich_markup_mode=None)
    service.command("install")(service_install)
    service.command("uninstall")(service_uninstall)
    service.command("start")(service_start)
    service.command("stop")(service_stop)
    service.command("status")(service_status)
    cron = typer.Typer(help=CRON, no_args_is_help=True, rich_markup_mode=None)
    cron.command("install")(cron_install)
    cron.command("uninstall")(cron_uninstall)
    cron.command("status")(cron_status)
    return {"service": service, "cron": cron}


MARK = "# swapd: keep it running"


def line_for(home: Paths) -> str:
    """The line in the user's crontab."""
    variables = {
        "SWAPD_HOME": str(home.folder),
        "SWAPD_COMMAND": command(),
        "PATH": os.environ.get("PATH", os.defpath),
    }
    words = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    words += [shlex.quote(sys.executable), "-I", "-m", "swapd", "start"]
    # To cron, a bare % is the end of a line.
    called = " ".join(words).replace("%", "\\%")
    return f"0 * * * * {called} >/dev/null 2>&1 {MARK}"


def install(dry_run: bool) -> int:
    """Have swapd started every hour if it does not run, and now."""
    wanted = line_for(find_paths())
    if dry_run:
        print(wanted)
        return 0
    before = _read()
    after = [*_others(before), wanted]
    if after != before:
        _write(after)
    print(f"cron starts swapd every hour; {command()} cron uninstall ends that")
    from swapd.cli import start_stop

    return start_stop.start("", 0, None)


def uninstall(dry_run: bool) -> int:
    """Take the line out of the crontab; a swapd that runs goes on."""
    before = _read()
    after = _others(before)
    if dry_run:
        for line in before:
            if line not in after:
                print(f"# would be removed: {line}")
    elif after == before:
        print("cron does not start swapd")
    else:
        _write(after)
        print("cron does not start swapd any more")
    return 0


def status() -> int:
    """Whether the line is there; exit status 3: it is not."""
    before = _read()
    ours = [line for line in before if line.endswith(MARK)]
    print("\n".join(f"✓ {line}" for line in ours) or "✗ cron does not start swapd")
    return 0 if ours else 3


def _others(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.endswith(MARK)]


def _read() -> list[str]:
    """The crontab's lines; none when there is no crontab yet."""
    done = _crontab(["-l"])
    if done.returncode != 0 and "no crontab" not in done.stderr:
        raise FailedError(f"crontab -l failed: {done.stderr.strip() or done.returncode}")
    return done.stdout.splitlines()


def _write(lines: list[str]) -> None:
    done = _crontab(["-"], "".join(f"{line}\n" for line in lines))
    if done.returncode != 0:
        raise FailedError(f"the crontab was not changed: {done.stderr.strip() or done.returncode}")


def _crontab(words: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["crontab", *words], input=text, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise FailedError("there is no crontab on this machine: cron is not installed") from error
