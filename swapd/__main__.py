"""`python -m swapd`: the command line."""

from __future__ import annotations

import signal


def run() -> None:
    """Import the command line and hand over. Ctrl-C before that just ends the process."""
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from swapd.cli.main import main

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()


if __name__ == "__main__":
    run()
