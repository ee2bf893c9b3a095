"""Standard input, output and error: there for sure."""

from __future__ import annotations

import os
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
