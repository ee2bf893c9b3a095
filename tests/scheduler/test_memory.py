"""Memory in fact and in the books: what is free, what presses, what was learned. Conversations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swapd.domain import commands as od
from swapd.domain import events as ev
from swapd.domain.models import Catalog, Limits, ModelProfile
from swapd.scheduler.scheduler import FREE_MEMORY_INTERVAL as INTERVAL
from swapd.scheduler.scheduler import FREE_MEMORY_TIMEOUT as TIMEOUT
from tests.scheduler.test_rules import A, B, C, Talk, model
from tests.specs import changed_spec

HEAVY = changed_spec(A, need_bytes=8)
BIG, SMALL = model("big", need_bytes=8), model("small", need_bytes=2)
CAREFUL = Limits(budget_bytes=10, require_free_memory=True, policy="lru", interval=1000)


def test_a_worker_is_started_when_its_memory_is_free_in_fact() -> None:
    talk = Talk(CAREFUL, big=BIG)
    talk >> ev.RequestArrived(0, 1, "big") << "look"
    talk >> ev.FreeMemoryReported(0, 8) << "start:big=1 wake:100"


def test_idle_workers_go_when_other_programs_hold_the_memory() -> None:
    talk = Talk(replace(CAREFUL, budget_bytes=100), big=BIG, small=SMALL, a=A)
    for worker, name in enumerate(("small", "a"), 1):
        talk >> ev.RequestArrived(0, worker, name) >> ev.FreeMemoryReported(0, 50)
        talk >> ev.WorkerReady(worker, worker) >> ev.RequestFinished(worker, worker)
    talk >> ev.RequestArrived(5, 3, "big") << "look"
    talk >> ev.FreeMemoryReported(5, 6) << "stop:1 wake:10"
    talk >> ev.FreeMemoryReported(5.1, 6) << ""
    talk >> ev.WorkerExited(6, 1) << "look wake:1002"
    talk >> ev.FreeMemoryReported(6, 8) << "start:big=3 wake:106"


def test_what_is_on_its_way_up_or_out_is_waited_for() -> None:
    talk = Talk(replace(CAREFUL, budget_bytes=100), big=BIG, small=SMALL)
    (
        talk
        >> ev.RequestArrived(0, 1, "small")
        >> ev.FreeMemoryReported(0, 9)
        << "start:small=1 wake:100"
    )
    # Of the nine that are free, two are to be taken by the one that is starting.
    talk >> ev.RequestArrived(1, 2, "big") << "look"
    talk >> ev.FreeMemoryReported(1, 9) << ""
    talk >> ev.WorkerReady(2, 1) << "sample look grant:1->1 wake:1002"
    talk >> ev.FreeMemoryReported(2, 8) << "start:big=2 wake:102"


def test_memory_that_nobody_gives_back_is_waited_for_and_then_refused() -> None:
    talk = Talk(CAREFUL, big=BIG, small=SMALL)
    talk >> ev.RequestArrived(0, 1, "big") << "look"
    talk >> ev.FreeMemoryReported(0, 5) << f"wake:{INTERVAL:g}"
    talk >> ev.RequestArrived(0, 2, "small") << "look wake:never"
    talk >> ev.FreeMemoryReported(0, 5) << f"wake:{INTERVAL:g}"
    now = INTERVAL
    while now < TIMEOUT:
        talk >> ev.TimerFired(now) << "look"
        talk >> ev.FreeMemoryReported(now, 5) << f"wake:{now + INTERVAL:g}"
        now += INTERVAL
    talk >> ev.TimerFired(TIMEOUT) << "look"
    talk >> ev.FreeMemoryReported(TIMEOUT, 5) << "refuse:1:insufficient_memory look"
    (talk >> ev.FreeMemoryReported(TIMEOUT, 5) << f"start:small=1 wake:{TIMEOUT + 100:g}")


def test_the_refusal_says_how_much_is_missing() -> None:
    talk = Talk(replace(CAREFUL, budget_bytes=2**40), huge=model("huge", need_bytes=2 * 2**30))
    (
        talk
        >> ev.RequestArrived(0, 1, "huge")
        >> ev.FreeMemoryReported(0, 2**30)
        >> ev.TimerFired(TIMEOUT)
    )
    talk >> ev.FreeMemoryReported(TIMEOUT, 2**30)
    (refusal,) = [o for o in talk.last if isinstance(o, od.Reject)]
    assert refusal.message == (
        "'huge' needs 2,048 MiB of memory and 1,024 MiB are free: 1,024 MiB are missing,"
        " which other programs hold"
    )
    assert refusal.retry_after == 10.0


def test_patience_begins_anew_for_new_clients() -> None:
    talk = Talk(CAREFUL, big=BIG)
    (talk >> ev.RequestArrived(0, 1, "big") >> ev.FreeMemoryReported(0, 5) << f"wake:{INTERVAL:g}")
    talk >> ev.RequestCancelled(0.2, 1) << "wake:never"
    talk >> ev.RequestArrived(100, 2, "big") << "look"
    talk >> ev.FreeMemoryReported(100, 5) << f"wake:{100 + INTERVAL:g}"


def test_memory_that_comes_back_is_noticed() -> None:
    talk = Talk(CAREFUL, big=BIG)
    (talk >> ev.RequestArrived(0, 1, "big") >> ev.FreeMemoryReported(0, 5) << f"wake:{INTERVAL:g}")
    talk >> ev.TimerFired(INTERVAL) << "look"
    (talk >> ev.FreeMemoryReported(INTERVAL, 8) << f"start:big=1 wake:{100 + INTERVAL:g}")


def test_one_that_is_known_only_to_fill_the_budget_runs_alone_or_not_at_all() -> None:
    talk = Talk(CAREFUL, whole=model("whole", need_bytes=10), small=SMALL)
    talk >> ev.RequestArrived(0, 1, "whole") << "look"
    talk >> ev.FreeMemoryReported(0, 3) << "start:whole=1 wake:100"


@pytest.mark.parametrize("policy", ["ttl", "no-evict"])
def test_nobody_goes_for_it_under_a_policy_that_lets_nobody_go(policy: str) -> None:
    limits = replace(CAREFUL, policy=policy, budget_bytes=100)
    talk = Talk(limits, big=BIG, small=SMALL)
    talk >> ev.RequestArrived(0, 1, "small") >> ev.FreeMemoryReported(0, 9) >> ev.WorkerReady(1, 1)
    talk >> ev.RequestFinished(2, 1) >> ev.RequestArrived(3, 2, "big") << "look"
    talk >> ev.FreeMemoryReported(3, 6) << f"wake:{3 + INTERVAL:g}"


def test_nobody_looks_where_nobody_asked_for_it() -> None:
    talk = Talk(Limits(budget_bytes=10), big=BIG)
    talk >> ev.RequestArrived(0, 1, "big") << "start:big=1 wake:100"


def test_lost_time_presses_like_full_memory() -> None:
    limits = Limits(threshold_percent=75, psi_threshold_percent=10, policy="lru", interval=30)
    talk = Talk(limits, a=A, b=B)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1) >> ev.RequestFinished(2, 1)
    talk >> ev.MemorySampled(3, 40, {}, pressure_percent=10.0) << ""
    talk >> ev.MemorySampled(4, 40, {}, pressure_percent=11.0) << "stop:1 wake:9"
    talk = Talk(replace(limits, threshold_percent=0), a=A)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1) >> ev.RequestFinished(2, 1)
    talk >> ev.MemorySampled(3, 99, {}, pressure_percent=99.0) << ""


def test_busy_workers_go_above_the_critical_mark_alone_and_after_the_idle() -> None:
    limits = Limits(threshold_percent=75, critical_percent=95, policy="lru", interval=30)
    talk = Talk(limits, a=A, b=B, c=changed_spec(C, pinned=True))
    for worker, name in enumerate("abc", 1):
        talk >> ev.RequestArrived(0, worker, name) >> ev.WorkerReady(worker, worker)
    talk >> ev.RequestFinished(4, 2)
    talk >> ev.MemorySampled(5, 96, {}) << "stop:2 wake:10"
    talk >> ev.MemorySampled(6, 99, {}) << ""
    talk >> ev.WorkerExited(7, 2) << "sample wake:37"
    talk >> ev.MemorySampled(8, 94, {}) << ""
    talk >> ev.MemorySampled(9, 96, {}) << "stop:1 wake:14"
    talk >> ev.WorkerExited(10, 1, "SIGTERM") << "sample wake:40"
    talk >> ev.RequestFinished(10, 1, answered=False) << ""
    talk >> ev.MemorySampled(11, 99, {}) << ""


def test_what_was_learned_is_told_and_counts_from_the_start() -> None:
    talk = Talk(Limits(budget_bytes=10), a=HEAVY, b=changed_spec(B, need_bytes=2)).knowing(
        a=ModelProfile(3, 2.0)
    )
    talk >> ev.RequestArrived(0, 1, "a") >> ev.RequestArrived(0, 2, "b") << "start:b=2"
    assert [s.bytes for s in talk.core.status()] == [3, 2]
    talk >> ev.WorkerReady(4, 1)
    assert talk.remembered == [od.SaveProfile(1, ModelProfile(3, 2.4))]
    talk >> ev.MemorySampled(5, 10, {1: 3, 2: 9})
    assert talk.remembered == []
    talk >> ev.MemorySampled(5, 10, {1: 5})
    assert talk.remembered == [od.SaveProfile(1, ModelProfile(5, 2.4))]


def test_the_first_answer_is_a_reason_to_look() -> None:
    talk = Talk(Limits(budget_bytes=10, interval=30), a=A)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1) << "sample grant:1->1 wake:31"
    talk >> ev.RequestFinished(2, 1) << "sample wake:32"
    talk >> ev.RequestArrived(3, 2, "a") >> ev.RequestFinished(4, 2) << ""


def test_other_files_make_another_model() -> None:
    limits = Limits(budget_bytes=10)
    talk = Talk(limits, a=HEAVY).knowing(a=ModelProfile(3, 2.0))
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1)
    talk >> ev.CatalogReloaded(2, talk.catalog, {"a": ModelProfile(4, 1.0)})
    assert [s.bytes for s in talk.core.status()] == [4]
    talk >> ev.CatalogReloaded(3, talk.catalog, {})
    assert [s.bytes for s in talk.core.status()] == [8]


def test_other_terms_change_nothing_that_was_learned() -> None:
    talk = Talk(Limits(budget_bytes=10), a=HEAVY).knowing(a=ModelProfile(3))
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1)
    talk >> ev.CatalogReloaded(2, Catalog({"a": changed_spec(HEAVY, ttl=5.0)}, talk.catalog.limits))
    assert [s.bytes for s in talk.core.status()] == [3]
    changed = Catalog({"a": changed_spec(HEAVY, argv=("other",))}, talk.catalog.limits)
    talk >> ev.CatalogReloaded(3, changed) >> ev.WorkerExited(4, 1) >> ev.RequestArrived(5, 9, "a")
    assert [s.bytes for s in talk.core.status()] == [8]
