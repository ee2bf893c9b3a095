"""`python -m swapd`: the command line."""

from __future__ import annotations

import signal


def run() -> None:
    """Run the command line. Ctrl-C during its import ends the process without a traceback."""
    handles_interrupt = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handles_interrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from swapd.cli.main import main

    if handles_interrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()


if __name__ == "__main__":
    run()
