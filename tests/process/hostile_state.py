"""Hostile contents of state files: `python -m tests.process.hostile_state FOLDER VARIANTS`.

Only to be run in a PID namespace of its own. Bystanders of every relation to this process must
survive each damaged registry of workers, and swapd must start with each damaged state directory.
"""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

from swapd.process.orphans import RUN_ID, kill_orphans
from swapd.system.process_identity import program_name, start_time
from tests.daemon import Swapd, config
from tests.fixtures import fake

SEED = 18
NAMED_RUN = "0123456789abcdef0123456789abcdef"
STARTS = 12
"""Damaged state directories that swapd is started with."""
STATE_FILES = (
    "workers.json",
    "lock",
    "learned.json",
    "names.json",
    "model-info.json",
    "model-info.json",
)


def _bystanders() -> list[subprocess.Popen[bytes]]:
    """Start processes: in this session, in others, with and without a run id of their own."""
    sleep = ["sleep", "600"]
    return [
        subprocess.Popen(sleep),
        subprocess.Popen(sleep, start_new_session=True),
        subprocess.Popen(sleep, start_new_session=True, env={}),
        subprocess.Popen(sleep, start_new_session=True, env={RUN_ID: "e" * 32}),
        subprocess.Popen(sleep, start_new_session=True, env={RUN_ID: ""}),
    ]


def _content(draw: random.Random, pids: list[int]) -> bytes:
    """Draw a registry: fields of real processes, of none, and of wrong types, and broken bytes."""

    def record() -> object:
        pid = draw.choice([*pids, *(-pid for pid in pids), 0, -1, 1, 2, 2**31, 2**63, 2**70])
        real = draw.choice(pids)
        fields = {
            "pid": draw.choice([pid, pid, pid, str(pid), None, 1.5, True]),
            "started": draw.choice([start_time(real), start_time(abs(pid) % 2**31), "", "x", 0]),
            "program": draw.choice([program_name(real), "", "/bin/sh", "\0", None]),
        }
        for name in draw.sample(list(fields), draw.choice([0, 0, 0, 1])):
            del fields[name]
        return draw.choice([fields, fields, fields, fields, [], None])

    run_id = draw.choice([NAMED_RUN, NAMED_RUN, "", "x", "F" * 32, 7, None])
    workers = [record() for _ in range(draw.randrange(4))]
    page: dict[str, object] = {
        "run_id": run_id,
        "workers": draw.choice([workers, workers, workers, {}, None]),
    }
    content = bytearray(json.dumps(page).encode())
    for _ in range(draw.choice([0, 0, 0, 1, 3])):
        content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content[: draw.choice([len(content), len(content), draw.randrange(len(content))])])


def _check_registries(folder: Path, variants: int, draw: random.Random) -> None:
    bystanders = _bystanders()
    pids = [os.getpid(), *(process.pid for process in bystanders)]
    log = logging.getLogger("hostile")
    log.disabled = True
    file = folder / "workers.json"
    try:
        for number in range(variants):
            content = _content(draw, pids)
            file.write_bytes(content)
            kill_orphans(file, log)
            dead = [process.args for process in bystanders if process.poll() is not None]
            assert not dead, f"variant {number} killed {dead}: {content!r}"
    finally:
        for process in bystanders:
            process.kill()
            process.wait()


def _check_starts(folder: Path, draw: random.Random) -> None:
    for number in range(STARTS):
        home = folder / f"home{number}"
        state = home / ".swapd"
        state.mkdir(parents=True)
        for name in STATE_FILES:
            (state / name).write_bytes(_content(draw, [os.getpid(), os.getppid()]))
        with Swapd(home, config({"a": fake("a")})) as swapd:
            assert swapd.ask("a").status_code == 200


def main() -> None:
    """Run both checks; an AssertionError ends the process with status 1."""
    folder, variants = Path(sys.argv[1]), int(sys.argv[2])
    assert os.getpid() < 10, "this needs a PID namespace of its own"
    draw = random.Random(SEED)
    _check_registries(folder, variants, draw)
    _check_starts(folder, draw)
    print(f"{variants} variants of the registry, {STARTS} starts with damaged state")


if __name__ == "__main__":
    main()
