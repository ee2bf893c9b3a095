"""A small disk for a test to fill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def can_mount() -> bool:
    """Return True if this user may mount a disk in memory."""
    return sys.platform == "linux" and os.geteuid() == 0


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """Mount `folder` as a disk of so many KiB; skip the test where this is not possible."""
    if not can_mount():
        pytest.skip("only root may mount a disk in memory, on Linux")
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no disk in memory can be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk; return the file that uses the space."""
    file = folder / "filling"
    with file.open("ab", buffering=0) as out:
        for size in (4096, 256, 1):
            try:
                while out.write(b"x" * size) == size:
                    pass
            except OSError:
                continue
    return file
