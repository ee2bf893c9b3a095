"""What was just written, taken up by the swapd that runs."""

from __future__ import annotations

from swapd.doors.cli.client import SOON, running
from swapd.doors.cli.line import Line
from swapd.doors.cli.say import FailedError, complain
from swapd.paths import Home


def take_up(home: Home) -> None:
    """Have a swapd that serves this home read its configuration again before this returns."""
    if running(home) is None:
        return
    try:
        with Line(home, SOON) as line:
            told = line.ask(id=1, op="reload")
    except FailedError:
        return  # It looks for changes by itself too, some moments later.
    if "error" in told:
        complain(told["error"]["message"])
