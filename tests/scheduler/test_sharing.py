"""Tenants, priorities, keep_alive, policies and groups: single rules as scripts."""

from __future__ import annotations

import pytest

from swapd.domain import commands as od
from swapd.domain import events as ev
from swapd.domain.models import Group, Limits
from swapd.scheduler.queue import CREDIT, MAX_QUEUED_TOKENS, QUEUED_WEIGHT, STEP
from tests.scheduler.test_rules import A, B, C, Talk, model
from tests.specs import changed_spec

PATIENT = changed_spec(A, max_queue=1000)


def _served(talk: Talk, tokens: int, rounds: int, now: float = 10.0) -> list[int]:
    """Let one request after the other finish; the requests that are granted, in order."""
    granted = []
    (running,) = [o.request for o in talk.last if isinstance(o, od.AssignWorker)]
    for _ in range(rounds):
        now += 1
        talk >> ev.RequestFinished(now, running, tokens=tokens)
        (running,) = [o.request for o in talk.last if isinstance(o, od.AssignWorker)]
        granted.append(running)
    return granted


def test_who_asks_for_much_is_behind_those_who_ask_for_little() -> None:
    talk = Talk(a=PATIENT)
    for request in range(40):
        talk >> ev.RequestArrived(0, request, "a", tenant="greedy")
    for request in (50, 51):
        talk >> ev.RequestArrived(1, request, "a", tenant="x")
        talk >> ev.RequestArrived(1, request + 10, "a", tenant="y")
    talk >> ev.WorkerReady(2, 1) << "grant:50->1 wake:never"
    assert _served(talk, 100, 6) == [60, 51, 61, 0, 1, 2]


def test_tenants_that_differ_by_little_are_served_by_age() -> None:
    talk = Talk(a=PATIENT)
    for request in range(12):
        talk >> ev.RequestArrived(request, request, "a", tenant="xxyy"[request % 4])
    talk >> ev.WorkerReady(20, 1) << "grant:0->1 wake:never"
    assert _served(talk, 256, 11, now=20.0) == list(range(1, 12))


def _by_turns(talk: Talk, tokens: dict[str, int], rounds: int, step: float = 1.0) -> list[str]:
    """Return the tenants in the order of service, each sending its next request at its end."""
    now, last, order = 10.0, 10_000, list[str]()
    for _ in range(rounds):
        now += step
        (running,) = [o.request for o in talk.last if isinstance(o, od.AssignWorker)]
        tenant = min(tokens) if running % 2 else max(tokens)
        order.append(tenant)
        last += 2
        talk >> ev.RequestArrived(now, last + running % 2, "a", tenant=tenant)
        talk >> ev.RequestFinished(now, running, tokens=tokens[tenant])
    return order


def test_tenants_take_turns_however_many_requests_one_of_them_has() -> None:
    talk = Talk(a=PATIENT)
    for request in range(0, 60, 2):
        talk >> ev.RequestArrived(0, request, "a", tenant="y")
    for request in range(1, 11, 2):
        talk >> ev.RequestArrived(1, request, "a", tenant="x")
    talk >> ev.WorkerReady(2, 1)
    order = _by_turns(talk, {"x": 200, "y": 200}, 100)
    assert order[:5] == ["x"] * 5
    assert order[20:].count("x") == pytest.approx(40, abs=3)


def test_what_counts_is_tokens_and_not_requests() -> None:
    talk = Talk(a=PATIENT)
    for request in range(20):
        talk >> ev.RequestArrived(0, request, "a", tenant="long" if request % 2 else "short")
    talk >> ev.WorkerReady(1, 1)
    order = _by_turns(talk, {"long": 1000, "short": 250}, 200)
    assert order.count("short") == pytest.approx(160, abs=6)


def test_what_a_tenant_waits_for_counts_up_to_a_bound() -> None:
    talk = Talk(a=PATIENT)
    for request in range(0, 1600, 2):
        talk >> ev.RequestArrived(0, request, "a", tenant="y")
    talk >> ev.RequestArrived(1, 1, "a", tenant="x") >> ev.RequestArrived(1, 3, "a", tenant="x")
    talk >> ev.WorkerReady(2, 1)
    order = _by_turns(talk, {"x": 4000, "y": 4000}, 60)
    # From the time at which it is known how long requests are.
    assert 20 < order.index("y") < 4 + MAX_QUEUED_TOKENS / 4000
    assert order[30:].count("x") == pytest.approx(15, abs=3)


def test_who_waits_is_passed_for_a_while_and_no_longer() -> None:
    talk = Talk(a=PATIENT)
    for request in range(0, 200, 2):
        talk >> ev.RequestArrived(0, request, "a", tenant="y")
    talk >> ev.WorkerReady(1, 1)
    _served(talk, 1000, 1)
    for request in (1, 3):
        talk >> ev.RequestArrived(11, request, "a", tenant="x")
    talk >> ev.RequestFinished(12, 2, tokens=1000)
    order = _by_turns(talk, {"x": 100, "y": 100}, 30, step=10.0)
    # Ten seconds each: y is next when more than MAX_SKIPPED have gone by.
    assert order == [*["x"] * 13, "y", *["x"] * 12, "y", *["x"] * 3]


def test_absence_earns_no_more_than_the_credit() -> None:
    talk = Talk(a=PATIENT)
    for request in range(400):
        talk >> ev.RequestArrived(0, request, "a", tenant="greedy")
    talk >> ev.WorkerReady(1, 1)
    _served(talk, 1000, 100)
    running = 100
    for request in range(500, 799):
        talk >> ev.RequestArrived(200, request, "a", tenant="back")
    talk >> ev.RequestFinished(201, running, tokens=1000)
    grants = _served(talk, 1000, 60, now=202.0)
    ahead = next(i for i, request in enumerate(grants) if request < 400)
    # What it waits for becomes less meanwhile, and counts too.
    assert ahead == pytest.approx(CREDIT / 1000 / (1 - QUEUED_WEIGHT), abs=4)
    later = grants[ahead:]
    assert sum(request < 400 for request in later) == pytest.approx(len(later) / 2, abs=3)


def test_a_failed_request_costs_its_tenant_nothing() -> None:
    talk = Talk(a=PATIENT)
    for request in range(1, 7):
        talk >> ev.RequestArrived(0, request, "a", tenant="x")
    for request in (7, 8):
        talk >> ev.RequestArrived(0, request, "a", tenant="y")
    talk >> ev.WorkerReady(1, 1) << "grant:1->1 wake:never"
    for request in range(1, 5):
        talk >> ev.RequestFinished(1 + request, request, answered=False)
        talk << f"grant:{request + 1}->1"
    talk >> ev.RequestFinished(6, 5, tokens=1000) << "grant:7->1"


def test_priority_goes_first_and_waiting_makes_up_for_it() -> None:
    talk = Talk(a=PATIENT)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1)
    talk >> ev.RequestArrived(2, 2, "a") >> ev.RequestArrived(3, 3, "a", priority=1)
    talk >> ev.RequestArrived(2 + STEP + 1, 4, "a", priority=1)
    talk >> ev.RequestFinished(40, 1) << "grant:3->1"
    talk >> ev.RequestFinished(41, 3) << "grant:2->1"
    talk >> ev.RequestFinished(42, 2) << "grant:4->1"


def test_priorities_have_an_end() -> None:
    talk = Talk(a=PATIENT)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1) >> ev.RequestArrived(2, 2, "a")
    talk >> ev.RequestArrived(3 + 10 * STEP, 3, "a", priority=10**6)
    talk >> ev.RequestFinished(400, 1) << "grant:2->1"


def test_the_priorities_of_a_model_and_of_a_request_add_up() -> None:
    talk = Talk(Limits(max_resident=1, max_turn=0), a=A, b=changed_spec(B, priority=1), c=C)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1)
    talk >> ev.RequestArrived(2, 2, "b", priority=-1) >> ev.RequestArrived(3, 3, "c", priority=1)
    talk >> ev.RequestArrived(4, 4, "b", priority=1)
    # Of b, 30 s for the model and 30 s for the request: before c, that has come earlier.
    talk >> ev.RequestFinished(5, 1) >> ev.WorkerExited(6, 1) << "start:b=2 wake:106"
    talk >> ev.WorkerReady(7, 2) << "grant:4->2 wake:never"


def test_a_models_priority_counts_for_room_as_well() -> None:
    talk = Talk(Limits(max_resident=1, max_turn=0), a=A, b=B, c=changed_spec(C, priority=1))
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1)
    talk >> ev.RequestArrived(2, 2, "b") >> ev.RequestArrived(3, 3, "c")
    talk >> ev.RequestFinished(4, 1) >> ev.WorkerExited(5, 1) << "start:c=2 wake:105"


def test_a_tenant_has_a_bound_of_its_own() -> None:
    talk = Talk(Limits(max_per_tenant=2), a=A, b=B)
    talk >> ev.RequestArrived(0, 1, "a", tenant="x") >> ev.RequestArrived(0, 2, "b", tenant="x")
    talk >> ev.RequestArrived(0, 3, "b", tenant="x") << "refuse:3:tenant_queue_full"
    talk >> ev.RequestArrived(0, 4, "b", tenant="y") << ""
    talk >> ev.RequestCancelled(1, 1) >> ev.RequestArrived(1, 5, "b", tenant="x") << ""


def test_a_full_queue_costs_the_greediest_its_newest() -> None:
    talk = Talk(a=changed_spec(A, max_queue=3))
    for request in (1, 2, 3):
        talk >> ev.RequestArrived(0, request, "a", tenant="greedy")
    talk >> ev.RequestArrived(1, 4, "a", tenant="greedy") << "refuse:4:queue_full"
    talk >> ev.RequestArrived(1, 5, "a", tenant="x") << "refuse:3:queue_full"
    talk >> ev.RequestArrived(1, 6, "a", tenant="x") << "refuse:6:queue_full"
    total = Talk(Limits(max_queued=3), a=A, b=B)
    for request in (1, 2, 3):
        total >> ev.RequestArrived(0, request, "a", tenant="greedy")
    total >> ev.RequestArrived(1, 4, "b", tenant="x")
    assert "refuse:3:overloaded" in " ".join(map(_told, total.last))


def _told(order: od.Command) -> str:
    return f"refuse:{order.request}:{order.reason.value}" if isinstance(order, od.Reject) else ""


def test_keep_alive_stands_instead_of_the_time_to_live() -> None:
    talk = Talk(a=changed_spec(A, ttl=10.0))
    talk >> ev.RequestArrived(0, 1, "a", keep_alive=3.0) >> ev.WorkerReady(1, 1)
    talk >> ev.RequestFinished(2, 1) << "wake:5"
    assert talk.core.status()[0].expires_at == 5.0
    talk >> ev.RequestArrived(3, 2, "a") << "grant:2->1 wake:never"
    talk >> ev.RequestFinished(4, 2) << "wake:7"
    talk >> ev.RequestArrived(5, 3, "a", keep_alive=-1.0) >> ev.RequestFinished(6, 3) << ""
    assert talk.core.status()[0].expires_at is None
    (
        talk
        >> ev.RequestArrived(7, 4, "a", keep_alive=0.0)
        >> ev.RequestFinished(8, 4)
        << "stop:1 wake:13"
    )


def test_keep_alive_of_a_look_at_the_worker_counts_at_once() -> None:
    talk = Talk(a=A)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1) >> ev.RequestFinished(2, 1) << ""
    talk >> ev.RequestArrived(3, 2, "a", needs_slot=False, keep_alive=4.0) << "grant:2->1 wake:6"
    talk >> ev.TimerFired(6) << "stop:1 wake:11"


def test_keep_alive_0_waits_for_those_who_wait() -> None:
    talk = Talk(a=A)
    (
        talk
        >> ev.RequestArrived(0, 1, "a", keep_alive=0.0)
        >> ev.RequestArrived(0, 2, "a")
        >> ev.WorkerReady(1, 1)
    )
    talk >> ev.RequestFinished(2, 1) << "grant:2->1"
    talk >> ev.RequestFinished(3, 2) << "stop:1 wake:8"


def _two_idle(policy: str, **changes: dict[str, object]) -> Talk:
    """a was used last and loads in 1 s, b was used most and loads in 4 s; c is asked for."""
    specs = {n: model(n, need_bytes=1, ttl=100.0, **changes.get(n, {})) for n in "abc"}
    talk = Talk(Limits(budget_bytes=2, policy=policy, max_turn=0, interval=1e6), **specs)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1)
    talk >> ev.RequestArrived(1, 2, "b") >> ev.WorkerReady(5, 2) >> ev.RequestFinished(6, 2)
    for request in range(10, 13):
        talk >> ev.RequestArrived(6, request, "b") >> ev.RequestFinished(7, request)
    talk >> ev.RequestFinished(8, 1)
    return talk >> ev.RequestArrived(9, 3, "c")


@pytest.mark.parametrize(
    ("policy", "order"), [("lru", "stop:2"), ("lru-ttl", "stop:2"), ("lfu", "stop:1")]
)
def test_policies_differ_in_who_makes_room(policy: str, order: str) -> None:
    assert order in _words(_two_idle(policy))


@pytest.mark.parametrize("policy", ["ttl", "no-evict"])
def test_policies_that_make_no_room_refuse_and_start_nothing(policy: str) -> None:
    talk = _two_idle(policy)
    assert _words(talk) == "refuse:3:insufficient_memory"
    (refusal,) = [o for o in talk.last if isinstance(o, od.Reject)]
    assert "0 MiB of memory are missing" in refusal.message
    assert refusal.retry_after > 0


def test_cost_weighs_loading_likelihood_and_weight_by_the_byte() -> None:
    assert "stop:1" in _words(_two_idle("cost"))
    assert "stop:2" in _words(_two_idle("cost", a={"weight": 1000.0}))


def _words(talk: Talk) -> str:
    told = [f"stop:{o.worker}" for o in talk.last if isinstance(o, od.Stop)]
    return " ".join([*told, *filter(None, map(_told, talk.last))])


def test_only_some_policies_heed_the_time_to_live() -> None:
    for policy in ("cost", "ttl", "lru-ttl", "lru", "lfu", "no-evict"):
        talk = Talk(Limits(policy=policy), a=changed_spec(A, ttl=10.0))
        talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1) >> ev.RequestFinished(2, 1)
        talk << ("wake:12" if policy in ("cost", "ttl", "lru-ttl") else "")


GROUPS = (
    Group("big", frozenset("ab"), exclusive=False),
    Group("alone", frozenset("c")),
    Group("kept", frozenset("d"), exclusive=False, persistent=True),
)


def _grouped(*loaded: str) -> Talk:
    specs = {name: model(name) for name in "abcde"}
    talk = Talk(Limits(groups=GROUPS, max_turn=0, policy="lru"), **specs)
    for worker, name in enumerate(loaded, 1):
        (
            talk
            >> ev.RequestArrived(0, worker, name)
            >> ev.WorkerReady(1, worker)
            >> ev.RequestFinished(2, worker)
        )
    return talk


@pytest.mark.parametrize(
    ("loaded", "newcomer", "gone"),
    [
        ("a", "b", [1]),
        ("ad", "b", [1]),
        ("ade", "c", [1, 3]),
        ("c", "a", []),
        ("c", "e", []),
        ("d", "c", []),
    ],
)
def test_groups_part_their_members_and_exclusive_ones_all_others(
    loaded: str, newcomer: str, gone: list[int]
) -> None:
    talk = _grouped(*loaded)
    talk >> ev.RequestArrived(3, 50, newcomer)
    assert [o.worker for o in talk.last if isinstance(o, od.Stop)] == gone
    assert any(isinstance(o, od.Start) for o in talk.last) == (not gone)
    for worker in gone:
        talk >> ev.WorkerExited(4, worker)
    assert gone == [] or any(isinstance(o, od.Start) for o in talk.last)


def test_a_busy_member_finishes_before_the_other_is_loaded() -> None:
    talk = _grouped("a")
    talk >> ev.RequestArrived(3, 50, "a") >> ev.RequestArrived(4, 51, "b") << ""
    talk >> ev.RequestFinished(5, 50) << "stop:1 wake:10"
    talk >> ev.WorkerExited(6, 1) << "start:b=2 wake:106"


def test_beside_a_pinned_member_the_others_are_refused() -> None:
    talk = Talk(Limits(groups=GROUPS), a=changed_spec(A, pinned=True), b=B)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1) >> ev.RequestArrived(2, 2, "b")
    talk << "refuse:2:insufficient_memory"


def test_older_requests_for_one_model_keep_another_waiting_for_max_wait_at_most() -> None:
    talk = Talk(Limits(max_resident=1, max_turn=30), a=PATIENT, b=B)
    for request in range(10):
        talk >> ev.RequestArrived(0, request, "a", tenant="greedy")
    talk >> ev.WorkerReady(1, 1) >> ev.RequestArrived(5, 50, "b", tenant="x") << "wake:35"
    talk >> ev.RequestFinished(20, 0) << "grant:1->1"
    talk >> ev.TimerFired(35) << ""
    talk >> ev.RequestFinished(36, 1) << "stop:1 wake:41"
    # Then b is first, though older requests wait for a; and after its turn a comes back.
    talk >> ev.WorkerExited(37, 1) << "start:b=2 wake:137"
    talk >> ev.WorkerReady(38, 2) >> ev.RequestFinished(39, 50) << "stop:2 wake:44"
    talk >> ev.WorkerExited(40, 2) << "start:a=3 wake:140"


def test_strictly_by_arrival_nobody_older_is_put_out() -> None:
    talk = Talk(Limits(max_resident=1, max_turn=0), a=PATIENT, b=B)
    for request in range(3):
        talk >> ev.RequestArrived(0, request, "a")
    talk >> ev.WorkerReady(1, 1) >> ev.RequestArrived(5, 50, "b") << ""
    talk >> ev.RequestFinished(2000, 0) << "grant:1->1"
    talk >> ev.RequestFinished(4000, 1) << "grant:2->1"
    talk >> ev.RequestFinished(6000, 2) << "stop:1 wake:6005"


def test_those_that_belong_together_are_loaded_together() -> None:
    team = Group("team", frozenset("ab"), swap=False, exclusive=False, together=True)
    talk = Talk(Limits(groups=(team,)), a=A, b=B, c=C)
    talk >> ev.RequestArrived(0, 1, "a") << "start:a=1 bring:b wake:100"
    talk >> ev.RequestArrived(0, 2, "b", needs_slot=False) << "start:b=2"
    talk >> ev.RequestArrived(1, 3, "c") << "start:c=3"
    talk >> ev.WorkerExited(2, 2) >> ev.WorkerExited(3, 1)
    # Where there is not room for both, they don't go for each other without end.
    both = Talk(Limits(groups=(team,), max_resident=1, max_turn=0), a=A, b=B)
    both >> ev.RequestArrived(0, 1, "a") << "start:a=1 bring:b wake:100"
    both >> ev.RequestArrived(0, 2, "b", needs_slot=False) << ""
    both >> ev.WorkerReady(1, 1) >> ev.RequestFinished(2, 1) << "stop:1 wake:7"
    both >> ev.WorkerExited(3, 1) << "start:b=2 wake:103"


def test_who_has_just_come_up_stays_for_its_least_time() -> None:
    limits = Limits(max_resident=1, max_turn=0)
    talk = Talk(limits, a=changed_spec(A, min_residency=30.0), b=B)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1) >> ev.RequestFinished(2, 1)
    talk >> ev.RequestArrived(3, 2, "b") << "wake:31"
    talk >> ev.TimerFired(31) << "stop:1 wake:36"
