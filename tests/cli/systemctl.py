"""Stand-in for `systemctl --user`: runs the unit's command and records the calls.

The first argument is the folder for the records; the others are those of systemctl.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil


def main(folder: Path, words: list[str]) -> int:
    with (folder / "calls").open("a") as file:
        file.write(f"systemctl {' '.join(words)}\n")
    if (folder / "refuse-systemctl").exists():
        print("no bus", file=sys.stderr)
        return 1
    pid = _pid(folder)  # A zombie without a parent that reaps it has ended.
    if "show" in words:
        print(f"MainPID={pid}")
    elif {"start", "enable"} & {*words} and not pid:
        return _start(folder)
    elif {"stop", "disable"} & {*words} and pid:
        os.kill(pid, signal.SIGTERM)
        pause = threading.Event()
        while _pid(folder):
            pause.wait(0.02)
    return 0


def _pid(folder: Path) -> int:
    """Return the pid of the main process; 0 when there is none."""
    try:
        pid = int((folder / "main-pid").read_text())
        return pid if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else 0
    except (FileNotFoundError, psutil.NoSuchProcess):
        return 0


def _start(folder: Path) -> int:
    unit = Path(os.environ["HOME"], ".config/systemd/user/swapd.service").read_text()
    (line,) = re.findall("^ExecStart=(.*)$", unit, re.MULTILINE)
    given = [shlex.split(v)[0] for v in re.findall("^Environment=(.*)$", unit, re.MULTILINE)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as received:
        received.bind("")  # A name that no file has.
        address = "@" + received.getsockname()[1:].decode()
        variables = dict(v.split("=", 1) for v in given)
        process = subprocess.Popen(
            shlex.split(line),
            env={**os.environ, **variables, "NOTIFY_SOCKET": address},
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (folder / "main-pid").write_text(str(process.pid))
        received.settimeout(30)
        return 0 if received.recv(99) == b"READY=1" else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
