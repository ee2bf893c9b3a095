"""Files after a power cut, which may leave each block old, new, empty or missing.

A reader gets the old content, the new one or none, and serving continues.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from swapd.domain.models import Catalog, ModelProfile
from swapd.process.orphans import PidFile, PidRecord, kill_orphans
from swapd.process.profiles import VERSION, ProfileStore
from swapd.system.lockfile import LockHolder, read_holder
from swapd.system.state_files import read_state
from tests.specs import model_spec

LOG = logging.getLogger("power cut")
BLOCK = 64
"""Bytes; smaller than the blocks of any disk, so that each file has several."""
SPEC = model_spec("m", ("worker", "--model", "m.gguf"))


def _pid_file(*pids: int) -> bytes:
    # No process has this start time: none of these is to be killed.
    workers = [PidRecord(pid, "0", "/no/such/program/" + "x" * 50) for pid in pids]
    return msgspec.json.encode(PidFile("an unused run id" * 4, workers)).ljust(1024)


def _holder(endpoint: str) -> bytes:
    return msgspec.json.encode(LockHolder(os.getpid(), "0", endpoint, "log", "config")).ljust(512)


def _profiles(folder: Path, *needs: int) -> bytes:
    identity = ProfileStore(folder / "none", folder, LOG).identity(SPEC)
    models = {str(need): ModelProfile(need, 1.0) for need in needs} | {
        identity: ModelProfile(needs[0], 2.0)
    }
    return msgspec.json.format(
        msgspec.json.encode({"version": VERSION, "models": models}), indent=1
    )


@st.composite
def _blocks_after_a_cut(draw: st.DrawFn, old: bytes, new: bytes) -> bytes | None:
    length = draw(st.sampled_from([0, 1, len(new) // 2, len(old), len(new)]))
    blocks = []
    for start in range(0, length, BLOCK):
        source = draw(st.sampled_from([old, new, new, bytes(length)]))
        blocks.append(source[start : start + BLOCK].ljust(BLOCK, b"\0"))
    return draw(st.sampled_from([b"".join(blocks)[:length], None]))


def _read_after_cuts(
    name: str, write: Callable[[Path, int], bytes], read: Callable[[Path], object]
) -> None:
    """Read the file in many states in which a power cut may leave it."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        file = folder / name
        old, new = write(folder, 1), write(folder, 2)

        @settings(max_examples=150, deadline=None, database=None)
        @given(_blocks_after_a_cut(old, new))
        def check(content: bytes | None) -> None:
            for stale in folder.iterdir():
                stale.unlink()
            if content is not None:
                file.write_bytes(content)
            found = read(file)
            if content in (old, new):
                assert found is not None
            # A damaged file has been quarantined, or will be overwritten in any case.
            assert read(file) == found

        check()


def test_profiles() -> None:
    def read(file: Path) -> object:
        profiles = ProfileStore(file, file.parent, LOG).load(Catalog({"m": SPEC}))
        assert all(profile.bytes in (1, 2) for profile in profiles.values())
        return profiles.get("m")

    _read_after_cuts("learned.json", lambda folder, n: _profiles(folder, n, 7, 8), read)


def test_the_pid_registry() -> None:
    def read(file: Path) -> object:
        kill_orphans(file, LOG)
        return "no process was killed, this one included"

    _read_after_cuts("workers.json", lambda _, n: _pid_file(os.getpid(), os.getppid(), n), read)


def test_the_lock_holder() -> None:
    def read(file: Path) -> object:
        holder = read_holder(file.parent)
        return holder and ("held" if holder.alive() else "not held")

    _read_after_cuts("lock", lambda _, n: _holder(f"http://127.0.0.1:{n}" + "0" * 80), read)


def test_small_state_files() -> None:
    _read_after_cuts(
        "state.json",
        lambda _, n: msgspec.json.encode({f"key {i}": str(n) * 20 for i in range(9)}),
        lambda file: read_state(file, dict[str, str]),
    )
