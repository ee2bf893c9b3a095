"""Standard input, output and error: there for sure.

How many files and connections this process may have open.
"""

from __future__ import annotations

import os
import resource
import sys


def hold_standard_descriptors() -> None:
    """Open the null device on those of 0, 1 and 2 that are closed.

    Otherwise the next pipe or socket becomes one of them, and whoever prints writes into it. To
    be called before anything is opened.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is taken, and that is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


ENOUGH = 65_536


def raise_limit() -> int:
    """Lift the limit as far as it goes without more rights; the limit then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):
            # macOS allows less than it says; what there is will do.
            return int(soft)
        return most
    return most
