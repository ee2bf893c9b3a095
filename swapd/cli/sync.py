"""`sync`: find models and write config.yaml."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from swapd.cli.output import FailedError, print_error, waiting
from swapd.paths import demo_directory, find_paths, schema_url

if TYPE_CHECKING:
    from swapd.library.sync import SyncReport


def sync(
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a config.yaml that sync did not write.")
    ] = False,
) -> None:
    """Find GGUF files and write config.yaml."""
    run_sync(force=force)


def run_sync(
    *, force: bool = False, output: Callable[[str], None] = print, files: bool = True
) -> SyncReport:
    """Bring config.yaml up to date; `output` receives each line of the report.

    Without `files`, broken and skipped files are not reported. Raises FailedError, with everything
    unchanged, when the sync fails.
    """
    from swapd.cli.client import request_reload
    from swapd.config.errors import ConfigError
    from swapd.library.sync import sync as sync_library
    from swapd.process import memory
    from swapd.system.aio import wall

    paths = find_paths()
    paths.folder.mkdir(parents=True, exist_ok=True)
    try:
        with waiting("searching for models"):
            report = sync_library(
                paths.folder,
                os.environ,
                demo_directory(),
                now=wall(),
                total_memory=memory.total(),
                force=force,
                schema=schema_url("config"),
            )
    except ConfigError as error:
        raise FailedError(f"nothing was changed:\n{error}") from error
    *changes, result = report.lines(files=files)
    for line in changes:
        output(line)
    for warning in report.warnings:
        print_error(str(warning))
    if report.written:
        request_reload(paths)
    output(result)
    return report
