"""Commands that have the system keep swapd running: their options, and no more."""

from __future__ import annotations

from typing import Annotated

import typer

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, do nothing.")]

SERVICE = "Have launchd or systemd run swapd, from every login on."
CRON = "Have cron start swapd every hour."


def service_install(dry_run: DryRun = False) -> None:
    """Install the service and start it."""
    from swapd.doors.cli import service

    raise typer.Exit(service.install(dry_run))


def service_uninstall(dry_run: DryRun = False) -> None:
    """Stop the service and remove it."""
    from swapd.doors.cli import service

    raise typer.Exit(service.uninstall(dry_run))


def service_start(dry_run: DryRun = False) -> None:
    """Start the installed service."""
    from swapd.doors.cli import service

    raise typer.Exit(service.start(dry_run))


def service_stop(dry_run: DryRun = False) -> None:
    """Stop it; it stays installed."""
    from swapd.doors.cli import service

    raise typer.Exit(service.stop(dry_run))


def service_status(dry_run: DryRun = False) -> None:
    """Show what the service manager says.

    Exit status 3: not installed.
    """
    from swapd.doors.cli import service

    raise typer.Exit(service.status(dry_run))


def cron_install(dry_run: DryRun = False) -> None:
    """Add the line to your crontab, and start swapd now."""
    from swapd.doors.cli import cron

    raise typer.Exit(cron.install(dry_run))


def cron_uninstall(dry_run: DryRun = False) -> None:
    """Take the line out again; a swapd that runs goes on."""
    from swapd.doors.cli import cron

    raise typer.Exit(cron.uninstall(dry_run))


def cron_status() -> None:
    """Show the line.

    Exit status 3: there is none.
    """
    from swapd.doors.cli import cron

    raise typer.Exit(cron.status())


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
