"""`python -m swapd.doors.sync_once`: one sync of the home, told as a line of JSON."""

from __future__ import annotations

import sys

import msgspec


def main() -> int:
    """Sync; print `{"lines", "error", "settles_in"}`; 0 unless nothing could be done."""
    from swapd.doors.cli.say import FailedError
    from swapd.doors.cli.syncing import sync

    lines: list[str] = []
    settles_in, error = 0.0, ""
    try:
        report = sync(force=False, say=lines.append)
        settles_in = report.settles_in
        lines = lines if report.written else []
    except FailedError as failed:
        lines, error = [], str(failed)
    told = {"lines": lines, "error": error, "settles_in": settles_in}
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main())
