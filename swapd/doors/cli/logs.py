"""The logs, as they lie on the disk: they are there when swapd is not."""

from __future__ import annotations

import os
import sys
from collections import deque

from swapd.doors.cli.library import find, models
from swapd.doors.cli.say import FailedError
from swapd.paths import find_home
from swapd.system.logs import log_file


def logs(model: str, follow: bool, lines: int) -> int:
    """Print the last lines of swapd's log, or of a model's workers; go on if wanted."""
    home = find_home()
    name = find(models(home), model).name if model else ""
    path = log_file(home.logs, name)
    if not path.is_file() and not follow:
        said = f"no worker of {name} has said anything" if name else "there is no log"
        raise FailedError(f"{said} yet: there is no {path}")
    if follow:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        # tail knows what to do when the log is rotated away under it.
        os.execvp("tail", ["tail", "-n", str(lines), "-F", str(path)])
    with path.open(encoding="utf-8", errors="replace") as file:
        sys.stdout.writelines(deque(file, lines))
    return 0
