"""Standard descriptors that are always open, and the limit of open descriptors."""

from __future__ import annotations

import os
import resource
import sys


def hold_standard_descriptors() -> None:
    """Open the null device on each of the descriptors 0, 1 and 2 that is closed.

    Otherwise the next pipe or socket gets that number, and printed output goes into it. Call this
    before anything is opened.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The kernel assigns the lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


TARGET = 65_536
"""Open descriptors that are enough for any load."""


def raise_limit() -> int:
    """Raise the soft limit of open descriptors as far as allowed; return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = TARGET if hard == resource.RLIM_INFINITY else min(hard, TARGET)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):
            # macOS allows less than it reports; the old limit is enough.
            return int(soft)
        return most
    return most
