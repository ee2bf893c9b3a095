"""What a crowd held goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import logging
import weakref
from collections.abc import Iterator

import psutil
import pytest

from swapd.system.aio import now, pause
from swapd.system.memory_trim import CROWD, LOOK_AFTER, WORTH, MemoryTrimmer

LOG = logging.getLogger("test")


class Ring:
    """Something that nobody can reach any more, until the collector comes by."""

    def __init__(self, size: int) -> None:
        self.ring = self
        self.held = b"x" * size


def _leave_lying(size: int) -> weakref.ref[Ring]:
    return weakref.ref(Ring(size))


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    """It may come by at any time."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_when_half_have_gone_what_they_left_is_collected() -> None:
    heap = MemoryTrimmer(LOG)
    for _ in range(4):
        heap.enter()
    lying = _leave_lying(16 * WORTH)
    heap.leave()
    heap.look()
    assert lying() is not None, "three of four are still there"
    heap.leave()
    heap.look()
    assert lying() is None


async def test_a_look_comes_by_itself_when_a_request_has_ended() -> None:
    heap = MemoryTrimmer(LOG)
    heap.enter()
    lying = _leave_lying(16 * WORTH)
    heap.leave()
    end = now() + LOOK_AFTER + 20
    while lying() is not None:
        assert now() < end
        await pause(0.05)


async def test_for_little_nobody_is_stopped() -> None:
    heap = MemoryTrimmer(LOG)
    heap.enter()
    lying = _leave_lying(1000)
    heap.leave()
    heap.look()
    assert lying() is not None


async def test_for_a_crowd_it_is_worth_it_in_any_case() -> None:
    heap = MemoryTrimmer(LOG)
    for _ in range(CROWD):
        heap.enter()
    lying = _leave_lying(1000)
    for _ in range(CROWD):
        heap.leave()
    heap.look()
    assert lying() is None


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library's own")
async def test_free_pages_between_others_are_given_back() -> None:
    heap, process = MemoryTrimmer(LOG), psutil.Process()
    heap.enter()
    pieces = [b"x" * 2000 + bytes([i % 256]) for i in range(30_000)]
    kept = pieces[::10]
    before = process.memory_info().rss
    pieces.clear()
    assert process.memory_info().rss > before - 2**22, "the library would give it back by itself"
    heap.leave()
    heap.look()
    assert process.memory_info().rss < before - 20 * 2**20
    assert len(kept) == 3000
