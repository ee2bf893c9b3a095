"""Limits that the kernel holds a worker to."""

from __future__ import annotations

import errno
import os
import resource
import sys

from swapd.domain.models import WorkerLimits


def limit(pid: int, limits: WorkerLimits) -> None:
    """Hold the process, and all that it starts from now on, to these limits.

    Set from outside right after the spawn: doing it between fork and exec would cost the `vfork`.
    Memory and files are Linux's alone (`prlimit`). Raises OSError when one can't be set.
    """
    try:
        _set(pid, limits)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None) or errno.EPERM
        raise OSError(number, f"its limits can't be set: {error}") from error


def _set(pid: int, limits: WorkerLimits) -> None:
    if limits.nice:
        os.setpriority(os.PRIO_PROCESS, pid, limits.nice)
    if sys.platform != "linux":
        return
    if limits.memory:
        # Not the address space: a model's file, mapped, would count whole. This is what the
        # process may write to that is its own.
        resource.prlimit(pid, resource.RLIMIT_DATA, (limits.memory, limits.memory))
    if limits.files:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limits.files, limits.files))
