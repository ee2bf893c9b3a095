"""A power cut leaves of a file any of its blocks as they were before, as they were written, empty
or not there: what is read then is the old, the new or nothing, and serving goes on."""

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
"""Smaller than any disk's, so that there are several in each file."""
SPEC = model_spec("m", ("worker", "--model", "m.gguf"))


def _page(*pids: int) -> bytes:
    # Born when nobody was: none of these is to be touched.
    workers = [PidRecord(pid, "0", "/no/such/program/" + "x" * 50) for pid in pids]
    return msgspec.json.encode(PidFile("a mark of nobody's" * 4, workers)).ljust(1024)


def _holder(endpoint: str) -> bytes:
    return msgspec.json.encode(LockHolder(os.getpid(), "0", endpoint, "log", "config")).ljust(512)


def _learned(folder: Path, *needs: int) -> bytes:
    identity = ProfileStore(folder / "none", folder, LOG).identity(SPEC)
    models = {str(need): ModelProfile(need, 1.0) for need in needs} | {
        identity: ModelProfile(needs[0], 2.0)
    }
    return msgspec.json.format(
        msgspec.json.encode({"version": VERSION, "models": models}), indent=1
    )


@st.composite
def _what_is_left(draw: st.DrawFn, old: bytes, new: bytes) -> bytes | None:
    length = draw(st.sampled_from([0, 1, len(new) // 2, len(old), len(new)]))
    blocks = []
    for start in range(0, length, BLOCK):
        source = draw(st.sampled_from([old, new, new, bytes(length)]))
        blocks.append(source[start : start + BLOCK].ljust(BLOCK, b"\0"))
    return draw(st.sampled_from([b"".join(blocks)[:length], None]))


def _read_after_cuts(
    name: str, write: Callable[[Path, int], bytes], read: Callable[[Path], object]
) -> None:
    """Have the file read, again and again, as power cuts may leave it."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        file = folder / name
        old, new = write(folder, 1), write(folder, 2)

        @settings(max_examples=150, deadline=None, database=None)
        @given(_what_is_left(old, new))
        def look(left: bytes | None) -> None:
            for stale in folder.iterdir():
                stale.unlink()
            if left is not None:
                file.write_bytes(left)
            found = read(file)
            if left in (old, new):
                assert found is not None
            # What is damaged has been put out of the way, or is written over in any case.
            assert read(file) == found

        look()


def test_what_was_learned() -> None:
    def read(file: Path) -> object:
        learned = ProfileStore(file, file.parent, LOG).recall(Catalog({"m": SPEC}))
        assert all(one.bytes in (1, 2) for one in learned.values())
        return learned.get("m")

    _read_after_cuts("learned.json", lambda folder, n: _learned(folder, n, 7, 8), read)


def test_who_runs() -> None:
    def read(file: Path) -> object:
        kill_orphans(file, LOG)
        return "nobody was touched, this process among them"

    _read_after_cuts("workers.json", lambda _, n: _page(os.getpid(), os.getppid(), n), read)


def test_who_holds_the_lock() -> None:
    def read(file: Path) -> object:
        holder = read_holder(file.parent)
        return holder and ("held" if holder.alive() else "not held")

    _read_after_cuts("lock", lambda _, n: _holder(f"http://127.0.0.1:{n}" + "0" * 80), read)


def test_small_facts_of_the_configuration() -> None:
    _read_after_cuts(
        "facts.json",
        lambda _, n: msgspec.json.encode({f"fact {i}": str(n) * 20 for i in range(9)}),
        lambda file: read_state(file, dict[str, str]),
    )
