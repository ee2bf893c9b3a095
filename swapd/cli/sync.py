"""Sync, and what it has to say.

What was just written, taken up by the swapd that runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from swapd.cli.client import SOON, SocketClient, running
from swapd.cli.output import FailedError, print_error, sanitize, waiting
from swapd.paths import Paths, demo_directory, find_paths, schema_url

if TYPE_CHECKING:
    from swapd.library.sync import SyncReport


def sync_models(force: bool, say: Callable[[str], None] = print, files: bool = True) -> SyncReport:
    """Bring config.yaml up to date with the models there are; `say` takes each line of the report.

    Without `files`, those that are broken or passed over are not told. Raises FailedError, and
    leaves everything as it was, when that is not possible.
    """
    from swapd.config.errors import ConfigError
    from swapd.library.sync import sync as sync_library
    from swapd.process import memory
    from swapd.system import aio

    home = find_paths()
    home.folder.mkdir(parents=True, exist_ok=True)
    try:
        with waiting("looking for models"):
            report = sync_library(
                home.folder,
                os.environ,
                demo_directory(),
                now=aio.wall(),
                total_memory=memory.total(),
                force=force,
                schema=schema_url("config"),
            )
    except ConfigError as error:
        raise FailedError(f"nothing was changed:\n{error}") from error
    for verb, names in (
        ("added", report.added),
        ("changed", report.changed),
        ("removed", report.removed),
    ):
        for name in names:
            say(f"{verb:8}{name}")
    for verb, links in (("linked", report.linked), ("unlinked", report.unlinked)):
        for link in links:
            say(sanitize(f"{verb:<9}{link}"))
    passed = (("broken", report.broken), ("skipped", report.skipped)) if files else ()
    for verb, those in passed:
        for file in those:
            say(sanitize(f"{verb:8}{file.path}: {file.reason}"))
    for warning in report.warnings:
        print_error(str(warning))
    if report.written:
        request_reload(home)
    say(f"config  {report.path} {'changed' if report.written else 'unchanged'}")
    return report


def sync(
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a config.yaml that sync did not write.")
    ] = False,
) -> None:
    """Find GGUF files and write config.yaml."""
    sync_models(force)


def request_reload(home: Paths) -> None:
    """Have a swapd that serves this home read its configuration again before this returns."""
    if running(home) is None:
        return
    try:
        with SocketClient(home, SOON) as line:
            told = line.ask(id=1, op="reload")
    except FailedError:
        return  # It looks for changes by itself too, some moments later.
    if "error" in told:
        print_error(told["error"]["message"])
