"""Prefetch: read a model's files into the page cache before its worker maps them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from swapd.domain.models import ModelSpec
from swapd.process.profiles import paths_in


async def prefetch(spec: ModelSpec, home: Path) -> None:
    """Have the kernel read the files that the command names, without waiting for them.

    Where this is not available (macOS), the files are read when the worker maps them.
    """
    await asyncio.get_running_loop().run_in_executor(None, _advise, spec.launch.argv, home)


def _advise(argv: tuple[str, ...], home: Path) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    for word in paths_in(argv):
        if not word.endswith(".gguf"):
            continue
        try:
            handle = os.open(home / word, os.O_RDONLY)
        except (OSError, ValueError):
            continue  # The worker's own error message explains it.
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(handle)
