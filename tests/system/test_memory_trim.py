"""Memory of a burst of requests is returned to the kernel."""

from __future__ import annotations

import ctypes
import gc
import logging
import weakref
from collections.abc import Iterator

import psutil
import pytest

from swapd.system.aio import now, pause
from swapd.system.memory_trim import BURST, CHECK_DELAY, MIN_GROWTH, MemoryTrimmer

LOG = logging.getLogger("test")


class Cycle:
    """Unreachable cycle of objects, freed by the garbage collector only."""

    def __init__(self, size: int) -> None:
        self.cycle = self
        self.held = b"x" * size


def _garbage(size: int) -> weakref.ref[Cycle]:
    return weakref.ref(Cycle(size))


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    """Disable the garbage collector, which may run at any time."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_garbage_is_collected_when_half_the_requests_have_ended() -> None:
    trimmer = MemoryTrimmer(LOG)
    for _ in range(4):
        trimmer.enter()
    garbage = _garbage(16 * MIN_GROWTH)
    trimmer.leave()
    trimmer.trim()
    assert garbage() is not None, "three of four are still running"
    trimmer.leave()
    trimmer.trim()
    assert garbage() is None


async def test_the_load_is_checked_after_the_end_of_a_request() -> None:
    trimmer = MemoryTrimmer(LOG)
    trimmer.enter()
    garbage = _garbage(16 * MIN_GROWTH)
    trimmer.leave()
    end = now() + CHECK_DELAY + 20
    while garbage() is not None:
        assert now() < end
        await pause(0.05)


async def test_little_memory_is_not_worth_a_trim() -> None:
    trimmer = MemoryTrimmer(LOG)
    trimmer.enter()
    garbage = _garbage(1000)
    trimmer.leave()
    trimmer.trim()
    assert garbage() is not None


async def test_a_burst_is_worth_a_trim_in_any_case() -> None:
    trimmer = MemoryTrimmer(LOG)
    for _ in range(BURST):
        trimmer.enter()
    garbage = _garbage(1000)
    for _ in range(BURST):
        trimmer.leave()
    trimmer.trim()
    assert garbage() is None


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs malloc_trim")
async def test_free_pages_between_used_ones_are_returned() -> None:
    trimmer, process = MemoryTrimmer(LOG), psutil.Process()
    trimmer.enter()
    pieces = [b"x" * 2000 + bytes([i % 256]) for i in range(30_000)]
    held = pieces[::10]
    before = process.memory_info().rss
    pieces.clear()
    assert process.memory_info().rss > before - 2**22, "the library returns it without a trim"
    trimmer.leave()
    trimmer.trim()
    assert process.memory_info().rss < before - 20 * 2**20
    assert len(held) == 3000
