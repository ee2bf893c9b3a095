"""Files replaced in one step."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Replace the file in one step: a reader sees the old text or the new, never a part.

    Written as it is, line ends too. A new file is its owner's alone; an old one keeps its mode. A
    link stays a link. Raises OSError and leaves nothing behind.
    """
    target = path.resolve()
    handle, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            if target.exists():
                os.fchmod(file.fileno(), target.stat().st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).replace(target)
    except OSError:
        Path(beside).unlink(missing_ok=True)
        raise


def size(path: Path) -> int:
    """Bytes of a file; 0 when there is none to look at."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0
