"""`cron`: start swapd every hour, where there is no service manager."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import Annotated

import typer

from swapd.cli.output import FailedError, command, require_one_line
from swapd.paths import Paths, find_paths

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the line without adding it.")]
DryRunRemoval = Annotated[
    bool, typer.Option("--dry-run", help="Print the line without removing it.")
]
MARKER = "# swapd: keep it running"
"""End of swapd's line in the crontab."""


def group() -> typer.Typer:
    """Return the group of commands about cron."""
    app = typer.Typer(
        help="Let cron start swapd every hour.", no_args_is_help=True, rich_markup_mode=None
    )
    app.command("install")(install)
    app.command("uninstall")(uninstall)
    app.command("status")(status)
    return app


def install(dry_run: DryRun = False) -> int:
    """Add a line to your crontab, and start swapd now."""
    from swapd.cli.start_stop import start

    line = crontab_line(find_paths())
    if dry_run:
        print(line)
        return 0
    before = _read()
    after = [*_others(before), line]
    if after != before:
        _write(after)
    print(f"cron starts swapd every hour; {command()} cron uninstall ends that")
    return start()


def uninstall(dry_run: DryRunRemoval = False) -> int:
    """Remove the line from your crontab; a running swapd keeps running."""
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
    """Show the line.

    Exit status 3: there is none.
    """
    lines = [line for line in _read() if line.endswith(MARKER)]
    print("\n".join(f"✓ {line}" for line in lines) or "✗ cron does not start swapd")
    return 0 if lines else 3


def crontab_line(paths: Paths) -> str:
    """Return the line for the user's crontab."""
    variables = {
        "SWAPD_HOME": str(paths.folder),
        "SWAPD_COMMAND": command(),
        "PATH": os.environ.get("PATH", os.defpath),
    }
    words = [f"{name}={shlex.quote(require_one_line(value))}" for name, value in variables.items()]
    words += [shlex.quote(sys.executable), "-I", "-m", "swapd", "start"]
    # cron takes a bare % as the end of the line.
    text = " ".join(words).replace("%", "\\%")
    return f"0 * * * * {text} >/dev/null 2>&1 {MARKER}"


def _others(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.endswith(MARKER)]


def _read() -> list[str]:
    """Return the crontab's lines; none when there is no crontab yet."""
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
