"""Files on a host's disk: the four policies of old, and what must not happen to the books."""

from __future__ import annotations

import pytest

from swapd.store.policy import DiskStore, StoreAction, StoreDecision, StoreLimits, StoreRequest


def fetch(store: DiskStore, model: str, now: float, size: int = 1) -> StoreDecision:
    """Request a model that no worker has loaded, and execute the decision completely."""
    decision = store.decide(model, size, (), now)
    for name in decision.evicted:
        store.deleted(name)
    if decision.action is StoreAction.STORE:
        store.arrived(model, float(size), now)
    return decision


def test_lru_misses_hits_fills_and_evicts() -> None:
    store = DiskStore(StoreLimits("lru", max_files=2))
    assert fetch(store, "a", 0).action is StoreAction.STORE
    assert fetch(store, "a", 1).action is StoreAction.LOCAL
    assert fetch(store, "b", 2).action is StoreAction.STORE
    assert fetch(store, "a", 3).action is StoreAction.LOCAL
    assert fetch(store, "c", 4) == StoreDecision(StoreAction.STORE, ("b",))
    assert store.cached == ("a", "c")


def test_no_evict_rejects_and_keeps_what_it_has() -> None:
    store = DiskStore(StoreLimits("no-evict", max_files=2))
    fetch(store, "a", 0)
    fetch(store, "b", 1)
    assert fetch(store, "c", 2) == StoreDecision(StoreAction.REJECTED)
    assert fetch(store, "a", 3).action is StoreAction.LOCAL


def test_ttl_goes_by_time_alone() -> None:
    store = DiskStore(StoreLimits("ttl", ttl=5.0))
    for now, name in enumerate("abc"):
        assert not fetch(store, name, now).evicted
    assert fetch(store, "c", 5.5) == StoreDecision(StoreAction.LOCAL, ("a",))
    assert fetch(store, "d", 20) == StoreDecision(StoreAction.STORE, ("b", "c"))


def test_lru_ttl_heeds_both() -> None:
    store = DiskStore(StoreLimits("lru-ttl", max_files=2, ttl=5.0))
    for now, name in enumerate("abc"):
        fetch(store, name, now)
    assert store.cached == ("b", "c")
    assert fetch(store, "d", 9).evicted == ("b", "c")


def test_the_cost_of_fetching_counts_by_the_byte() -> None:
    store = DiskStore(StoreLimits("cost", max_bytes=10))
    store.decide("slow", 5, (), 0.0)
    store.arrived("slow", 100.0, 0.0)
    store.decide("quick", 5, (), 1.0)
    store.arrived("quick", 1.0, 1.0)
    assert fetch(store, "new", 2.0, 5).evicted == ("quick",)


def test_lfu_counts_all_requests() -> None:
    store = DiskStore(StoreLimits("lfu", max_files=2))
    for now, name in enumerate("aaab"):
        fetch(store, name, now)
    assert fetch(store, "c", 9).evicted == ("b",)


def test_a_file_is_there_only_when_its_transfer_has_succeeded() -> None:
    store = DiskStore(StoreLimits("lru", max_files=1))
    assert store.decide("a", 1, (), 0.0).action is StoreAction.STORE
    assert store.cached == ()
    # While it comes, its room is taken, and who asks for it too is told the same.
    assert store.decide("b", 1, (), 1.0).action is StoreAction.REJECTED
    assert store.decide("a", 1, (), 2.0).action is StoreAction.STORE
    store.failed("a")
    assert store.cached == ()
    assert fetch(store, "b", 3.0).action is StoreAction.STORE


def test_what_is_loaded_stays_on_the_disk() -> None:
    store = DiskStore(StoreLimits("lru-ttl", max_files=1, ttl=5.0))
    fetch(store, "a", 0.0)
    assert store.decide("a", 1, {"a"}, 1.0) == StoreDecision(StoreAction.ALREADY_LOADED)
    assert store.decide("b", 1, {"a"}, 99.0) == StoreDecision(StoreAction.REJECTED)
    assert store.cached == ("a",)


def test_a_file_that_is_to_go_is_not_served_and_may_come_again() -> None:
    store = DiskStore(StoreLimits("lru", max_files=1))
    fetch(store, "a", 0.0)
    assert store.decide("b", 1, (), 1.0).evicted == ("a",)
    store.failed("b")
    assert store.decide("a", 1, (), 2.0).action is StoreAction.STORE
    store.deleted("a")
    store.arrived("a", 1.0, 3.0)
    assert store.cached == ("a",)


@pytest.mark.parametrize("size", [11, 10**9])
def test_a_file_larger_than_the_disk_is_rejected_and_nobody_goes_for_it(size: int) -> None:
    store = DiskStore(StoreLimits("lru", max_bytes=10))
    fetch(store, "a", 0.0)
    assert store.decide("big", size, (), 1.0) == StoreDecision(StoreAction.REJECTED)


def test_the_line_of_a_request() -> None:
    line = StoreRequest(
        "12:00:00", "lru-ttl", "qwen.gguf", StoreAction.STORE, 0.021, 459.21, ("a", "b"), ()
    )
    assert str(line) == (
        "ts=12:00:00 policy=lru-ttl model=qwen.gguf action=load_from_store decision_ms=0.02"
        " worker_ms=459.2 cached=[a,b] evicted=[]"
    )
