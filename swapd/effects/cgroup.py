"""The memory limit of a container: Linux control groups, version 2.

Files as described in the kernel's Documentation/admin-guide/cgroup-v2.rst: `memory.max` holds
bytes or `max`, `memory.current` bytes, and `inactive_file` in `memory.stat` is page cache that
the kernel gives up before anybody suffers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """Bytes that a control group may have, and has in use."""

    limit: int
    used: int


def group_memory(root: Path = ROOT, membership: Path = MEMBERSHIP) -> GroupMemory | None:
    """The group among ours and those above it that has the least left; None without any limit."""
    own = _own_path(membership)
    if own is None:
        return None
    folder = root / own
    groups = [g for f in (folder, *folder.parents) if f.is_relative_to(root) and (g := _read(f))]
    return min(groups, key=lambda g: g.limit - g.used, default=None)


def own_folder(root: Path = ROOT, membership: Path = MEMBERSHIP) -> Path | None:
    """The folder of our own group; None where there are none of version 2."""
    own = _own_path(membership)
    return None if own is None else root / own


def _own_path(membership: Path) -> Path | None:
    """Our group's path below the root, from the line `0::/path`."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None  # No Linux, or no /proc.
    return next((Path(line[3:].lstrip("/")) for line in lines if line.startswith("0::")), None)


def _read(folder: Path) -> GroupMemory | None:
    """One group's figures; None when it has no limit or no memory controller."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        current = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    return GroupMemory(int(limit), max(0, current - int(stat.get("inactive_file", 0))))
