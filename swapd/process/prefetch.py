"""A model's files into the system's cache before its worker wants them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from swapd.domain.models import ModelSpec
from swapd.process.profiles import paths_in


async def prefetch(spec: ModelSpec, home: Path) -> None:
    """Ask the system to read the files that the command names, and do not wait for them.

    A system that can't be asked (macOS) reads them when they are mapped.
    """
    await asyncio.get_running_loop().run_in_executor(None, _ask, spec.launch.argv, home)


def _ask(argv: tuple[str, ...], home: Path) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    for word in paths_in(argv):
        if not word.endswith(".gguf"):
            continue
        try:
            handle = os.open(home / word, os.O_RDONLY)
        except (OSError, ValueError):
            continue  # Its worker will say what is wrong with it.
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(handle)
