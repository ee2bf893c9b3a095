"""Single rules of the scheduler, told as conversations: `>>` a fact, `<<` the orders it brings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swapd.domain import commands as od
from swapd.domain import events as ev
from swapd.domain.models import Catalog, Learned, Limits, ModelSpec
from swapd.scheduler.lifecycle import IllegalStepError, State, Step, advance
from swapd.scheduler.scheduler import Scheduler


class Talk:
    """`talk >> event << orders`: orders are given as short strings, in the order they come.

    What is to be remembered of a model, or read ahead, stands apart from them.
    """

    def __init__(self, limits: Limits | None = None, **models: ModelSpec) -> None:
        self.catalog = Catalog(models, limits or Limits())
        self.core = Scheduler(self.catalog)
        self.last: list[od.Order] = []
        self.remembered: list[od.Remember] = []
        self.ahead: list[str] = []

    def knowing(self, **learned: Learned) -> Talk:
        """The same from the start, with what was learned at another time."""
        self.core = Scheduler(self.catalog, learned)
        return self

    def __rshift__(self, event: ev.Event) -> Talk:
        orders = self.core.handle(event)
        self.last = [o for o in orders if not isinstance(o, (od.Remember, od.ReadAhead))]
        self.ahead = [o.spec.name for o in orders if isinstance(o, od.ReadAhead)]
        self.remembered = [o for o in orders if isinstance(o, od.Remember)]
        return self

    def __lshift__(self, expected: str) -> Talk:
        assert " ".join(map(_short, self.last)) == expected, repr(self.core)
        return self


def _short(order: od.Order) -> str:
    match order:
        case od.TakeSample() | od.LookAtFree():
            return "sample" if isinstance(order, od.TakeSample) else "look"
        case od.Bring(model):
            return f"bring:{model}"
        case od.WakeAt(when):
            return "wake:never" if when is None else f"wake:{when:g}"
        case _:
            return _told(order)


def _told(order: od.Order) -> str:
    match order:
        case od.Start(worker, spec):
            return f"start:{spec.name}={worker}"
        case od.Stop(worker) | od.Kill(worker):
            return f"{type(order).__name__.lower()}:{worker}"
        case od.Grant(request, worker):
            return f"grant:{request}->{worker}"
        case od.Refuse(request, why):
            return f"refuse:{request}:{why.value}"
        case od.Look(worker):
            return f"look:{worker}"
        case _:
            return str(order)


def model(name: str, **fields: object) -> ModelSpec:
    return ModelSpec(name, (name,), start_timeout=100.0, **fields)  # type: ignore[arg-type]


A, B, C = model("a"), model("b"), model("c")


def test_a_request_starts_its_model_once_and_is_granted_when_it_is_up() -> None:
    talk = Talk(a=replace(A, slots=2))
    talk >> ev.Arrived(0, 1, "a") << "start:a=1 wake:100"
    talk >> ev.Arrived(1, 2, "a") << ""
    talk >> ev.Arrived(2, 3, "a") << ""
    talk >> ev.CameUp(3, 1) << "grant:1->1 grant:2->1 wake:never"
    talk >> ev.Finished(4, 1) << "grant:3->1"
    assert "ready 2/2" in repr(talk.core)


def test_a_worker_that_tells_its_slots_is_believed() -> None:
    talk = Talk(a=A)
    for request in (1, 2, 3):
        talk >> ev.Arrived(0, request, "a")
    talk >> ev.CameUp(1, 1, slots=2) << "grant:1->1 grant:2->1 wake:never"


def test_the_least_recently_used_makes_room_and_is_really_gone_first() -> None:
    talk = Talk(Limits(max_resident=2, policy="lru"), a=A, b=B, c=C)
    talk >> ev.Arrived(0, 1, "a") >> ev.CameUp(1, 1) >> ev.Arrived(1, 2, "b") >> ev.CameUp(2, 2)
    talk >> ev.Finished(3, 2) >> ev.Finished(4, 1)
    talk >> ev.Arrived(5, 3, "c") << "stop:2 wake:10"
    talk >> ev.Exited(6, 2) << "start:c=3 wake:106"


def test_one_that_is_spared_when_another_alone_is_enough() -> None:
    sizes = {"a": 1, "b": 4, "c": 4}
    specs = {name: model(name, need_bytes=size) for name, size in sizes.items()}
    talk = Talk(Limits(budget_bytes=5, policy="lru"), **specs)
    talk >> ev.Arrived(0, 1, "a") >> ev.CameUp(1, 1) >> ev.Finished(2, 1)
    talk >> ev.Arrived(2, 2, "b") >> ev.CameUp(3, 2) >> ev.Finished(4, 2)
    # a is the older one, but giving up a alone is not enough and giving up b is.
    talk >> ev.Arrived(5, 3, "c") << "stop:2 wake:10"


def test_a_busy_worker_yields_to_an_older_request_and_to_no_younger_one() -> None:
    talk = Talk(Limits(max_resident=1, max_wait=0), a=replace(A, slots=2), b=B)
    talk >> ev.Arrived(0, 1, "a") >> ev.CameUp(1, 1)
    talk >> ev.Arrived(2, 2, "b") << ""
    talk >> ev.Arrived(3, 3, "a") << ""
    talk >> ev.Finished(4, 1) << "stop:1 wake:9"
    talk >> ev.Exited(5, 1) << "start:b=2 wake:105"


def test_it_yields_no_longer_when_the_older_request_has_left() -> None:
    talk = Talk(Limits(max_resident=1, max_wait=0), a=replace(A, slots=2), b=B)
    talk >> ev.Arrived(0, 1, "a") >> ev.CameUp(1, 1) >> ev.Arrived(2, 2, "b")
    talk >> ev.Arrived(3, 3, "a") << ""
    talk >> ev.Left(4, 2) << "grant:3->1"


def _loaded_twice() -> Talk:
    """Both models are known to load in one second; b is resident and the clock stands at 10."""
    talk = Talk(Limits(max_resident=1, max_wait=60), a=replace(A, slots=2), b=B)
    talk >> ev.Arrived(0, 1, "a") >> ev.CameUp(1, 1) >> ev.Finished(2, 1)
    talk >> ev.Arrived(5, 2, "b") >> ev.Exited(6, 1) >> ev.CameUp(7, 2) >> ev.Finished(8, 2)
    return talk >> ev.Arrived(9, 3, "b")


def test_a_resident_model_is_served_for_a_turn_while_another_waits() -> None:
    talk = _loaded_twice()
    # A turn is five swaps there and back: ten seconds from when a was asked for.
    talk >> ev.Arrived(10, 4, "a") << "wake:20"
    talk >> ev.Arrived(11, 5, "b") << ""
    talk >> ev.Finished(12, 3) << "grant:5->2"
    talk >> ev.Arrived(13, 6, "b") << ""
    talk >> ev.Ticked(20) << ""
    talk >> ev.Finished(21, 5) << "stop:2 wake:26"
    talk >> ev.Exited(22, 2) << "start:a=3 wake:122"


def test_a_model_that_falls_idle_gives_its_place_up_unless_its_clients_are_quick() -> None:
    slow = _loaded_twice()
    slow >> ev.Finished(9.5, 3) >> ev.Arrived(10, 4, "a") << "stop:2 wake:15"
    quick = _loaded_twice()
    now = 9.5
    quick >> ev.Finished(now, 3)
    for request in range(10, 40):
        quick >> ev.Arrived(now + 0.01, request, "b") >> ev.Finished(now + 0.1, request)
        now += 0.1
    quick >> ev.Arrived(now, 4, "a")
    (wake,) = quick.last
    assert isinstance(wake, od.WakeAt)
    assert wake.when is not None
    assert now + 0.02 < wake.when < now + 0.3
    quick >> ev.Ticked(wake.when)
    assert [type(order) for order in quick.last] == [od.Stop, od.WakeAt]


def test_a_turn_is_never_longer_than_max_wait() -> None:
    talk = _loaded_twice()
    talk >> ev.Reloaded(9, Catalog(talk.catalog.models, Limits(max_resident=1, max_wait=3)))
    talk >> ev.Arrived(10, 4, "a") << "wake:13"


def test_time_to_live_counts_from_the_end_of_the_last_request() -> None:
    talk = Talk(a=replace(A, ttl=10.0))
    talk >> ev.Arrived(0, 1, "a") >> ev.CameUp(1, 1) << "grant:1->1 wake:never"
    talk >> ev.Finished(50, 1) << "wake:60"
    # Being looked at is no use: a request without a slot does not count.
    talk >> ev.Arrived(55, 2, "a", needs_slot=False) << "grant:2->1"
    talk >> ev.Finished(56, 2) << ""
    talk >> ev.Ticked(60) << "stop:1 wake:65"
    talk >> ev.Ticked(65) << "kill:1"
    talk >> ev.Exited(66, 1) << ""
    assert talk.core.at_rest


def test_pressure_takes_one_idle_worker_a_sample_and_never_a_busy_one() -> None:
    talk = Talk(Limits(threshold_percent=75, interval=30, policy="lru"), a=A, b=B, c=C)
    for worker, name in enumerate("abc", 1):
        talk >> ev.Arrived(0, worker, name) >> ev.CameUp(worker, worker)
    talk >> ev.Finished(4, 2) >> ev.Finished(5, 1)
    talk >> ev.Sampled(6, 90, {}) << "stop:2 wake:11"
    talk >> ev.Sampled(7, 90, {}) << ""
    talk >> ev.Exited(8, 2) << "sample wake:38"
    talk >> ev.Sampled(9, 90, {}) << "stop:1 wake:14"
    talk >> ev.Exited(10, 1) << "sample wake:40"
    talk >> ev.Sampled(11, 90, {}) << ""
    talk >> ev.Finished(12, 3) << "sample wake:42"
    talk >> ev.Ticked(42) << "sample wake:72"
    talk >> ev.Sampled(43, 74, {}) << ""
    talk >> ev.Sampled(44, 76, {}) << "stop:3 wake:49"


def test_what_was_measured_replaces_the_estimate() -> None:
    sizes = Limits(budget_bytes=10)
    talk = Talk(sizes, a=model("a", need_bytes=8), b=model("b", need_bytes=8))
    talk >> ev.Arrived(0, 1, "a") >> ev.CameUp(1, 1) << "sample grant:1->1 wake:31"
    talk >> ev.Sampled(2, 10, {1: 2}) >> ev.Arrived(3, 2, "b") << "start:b=2"
    assert [s.bytes for s in talk.core.status()] == [2, 8]


def test_more_than_the_budget_is_refused_with_the_numbers() -> None:
    talk = Talk(Limits(budget_bytes=10 * 2**20), a=model("a", need_bytes=12 * 2**20))
    talk >> ev.Arrived(0, 1, "a") << "refuse:1:too_large"
    (refusal,) = talk.last
    assert isinstance(refusal, od.Refuse)
    assert refusal.message == ("'a' needs 12 MiB, 2 MiB more than the memory budget of 10 MiB")


def test_failed_starts_cool_down_and_the_rest_grows() -> None:
    talk = Talk(a=A)
    now, rests = 0.0, []
    for request in range(1, 9):
        talk >> ev.Arrived(now, request, "a")
        talk >> ev.Exited(now, request, "no") << f"refuse:{request}:start_failed wake:never"
        (refusal, _) = talk.last
        assert isinstance(refusal, od.Refuse)
        assert refusal.message == "'a' failed: no"
        rests.append(refusal.retry_after)
        talk >> ev.Arrived(now, 100 + request, "a") << f"refuse:{100 + request}:start_failed"
        now += refusal.retry_after
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60]
    talk >> ev.Arrived(now, 200, "a") >> ev.CameUp(now, 9) >> ev.Finished(now + 1, 200)
    assert talk.core.status()[0].state == "ready"
    (
        talk
        >> ev.Exited(now + 2, 9, "crashed")
        >> ev.Arrived(now + 3, 201, "a")
        << f"start:a=10 wake:{now + 103:g}"
    )
    # What was answered has made up for all that.
    talk >> ev.Exited(now + 4, 10, "no") << "refuse:201:start_failed wake:never"
    (refusal, _) = talk.last
    assert isinstance(refusal, od.Refuse)
    assert refusal.retry_after == 1


def test_a_crash_after_coming_up_rests_the_model_from_the_third_time_on() -> None:
    talk = Talk(a=A)
    for request in (1, 2, 3):
        now = 10 * request
        talk >> ev.Arrived(now, request, "a") << f"start:a={request} wake:{now + 100}"
        talk >> ev.CameUp(now + 1, request) >> ev.Exited(now + 2, request, "boom")
        talk >> ev.Finished(now + 2, request, answered=False)
    talk >> ev.Arrived(33, 4, "a") << "refuse:4:start_failed"


def test_a_start_that_somebody_kills_is_tried_again_twice() -> None:
    talk = Talk(a=A)
    talk >> ev.Arrived(0, 1, "a") << "start:a=1 wake:100"
    talk >> ev.Exited(1, 1, "killed", accident=True) << "start:a=2 wake:101"
    talk >> ev.Exited(2, 2, "killed", accident=True) << "start:a=3 wake:102"
    talk >> ev.Exited(3, 3, "killed", accident=True) << "refuse:1:start_failed wake:never"


def test_a_worker_that_does_not_come_up_in_time_is_killed_and_that_is_the_reason() -> None:
    talk = Talk(a=A)
    talk >> ev.Arrived(0, 1, "a") << "start:a=1 wake:100"
    talk >> ev.Ticked(100) << "kill:1"
    talk >> ev.Exited(101, 1, "killed") << "refuse:1:start_failed"
    (refusal,) = talk.last
    assert isinstance(refusal, od.Refuse)
    assert refusal.message == "'a' failed: it was not ready within 100 s"


def test_queues_have_bounds_each_and_all_together() -> None:
    talk = Talk(Limits(max_waiting=3), a=replace(A, max_queue=2), b=B)
    for request in (1, 2):
        talk >> ev.Arrived(0, request, "a")
    talk >> ev.Arrived(0, 3, "a") << "refuse:3:queue_full"
    talk >> ev.Arrived(0, 4, "b") >> ev.Arrived(0, 5, "b") << "refuse:5:overloaded"
    unbounded = Talk(Limits(max_waiting=0), a=A)
    unbounded >> ev.Arrived(0, 1, "a") << "start:a=1 wake:100"


def test_the_time_to_come_back_is_measured() -> None:
    talk = Talk(a=replace(A, max_queue=1))
    talk >> ev.Arrived(0, 1, "a") >> ev.CameUp(0, 1) >> ev.Finished(30, 1)
    talk >> ev.Arrived(30, 2, "a") >> ev.Arrived(30, 3, "a") >> ev.Arrived(30, 4, "a")
    (refusal,) = talk.last
    assert isinstance(refusal, od.Refuse)
    assert refusal.retry_after == 60.0


def test_unloading_by_hand_drains_and_a_new_request_starts_anew() -> None:
    talk = Talk(a=replace(A, slots=2))
    talk >> ev.Arrived(0, 1, "a") >> ev.CameUp(1, 1)
    talk >> ev.UnloadAsked(2, "a") << ""
    talk >> ev.Arrived(3, 2, "a") << "start:a=2 wake:103"
    talk >> ev.Finished(4, 1) << "stop:1 wake:9"


def test_closing_serves_what_has_a_worker_and_refuses_the_rest() -> None:
    talk = Talk(Limits(max_resident=2), a=A, b=B, c=C)
    talk >> ev.Arrived(0, 1, "a") >> ev.CameUp(1, 1) >> ev.Arrived(1, 2, "a")
    talk >> ev.Arrived(1, 3, "b") >> ev.Arrived(1, 4, "c")
    talk >> ev.ClosingAsked(2, 32) << "refuse:4:closing wake:32"
    talk >> ev.Arrived(3, 5, "a") << "refuse:5:closing"
    talk >> ev.Finished(4, 1) << "grant:2->1"
    talk >> ev.Finished(5, 2) << "stop:1 wake:10"
    talk >> ev.Exited(6, 1) << "wake:32"
    talk >> ev.Ticked(32) << "refuse:3:closing stop:2 kill:2"
    talk >> ev.Exited(33, 2) << ""
    assert talk.core.at_rest


def test_a_reload_keeps_what_did_not_change() -> None:
    talk = Talk(a=A, b=B, c=C)
    for worker, name in enumerate("abc", 1):
        talk >> ev.Arrived(0, worker, name) >> ev.CameUp(1, worker)
    new = {"a": replace(A, ttl=9.0), "b": replace(B, argv=("b", "--other"))}
    talk >> ev.Finished(2, 1) >> ev.Finished(2, 3)
    talk >> ev.Reloaded(3, Catalog(new, Limits())) << "start:b=4 stop:3 wake:8"
    assert [s.state for s in talk.core.status()] == ["ready", "ready", "stopping", "starting"]
    talk >> ev.CameUp(4, 4) >> ev.Finished(4, 2) << "stop:2"
    talk >> ev.Exited(5, 3) >> ev.Exited(5, 2) << "wake:11"


@pytest.mark.parametrize(
    ("state", "step"),
    [
        (State.READY, Step.CAME_UP),
        (State.DRAINING, Step.DRAIN),
        (State.STOPPING, Step.STOP),
        (State.STARTING, Step.DRAIN),
        (State.GONE, Step.EXITED),
    ],
)
def test_an_illegal_step_says_what_and_where(state: State, step: Step) -> None:
    with pytest.raises(IllegalStepError, match=f"'{step.value}'.*{state.value}"):
        advance(state, step)


def test_lowered_limits_send_idle_workers_away() -> None:
    talk = Talk(Limits(policy="lru"), a=A, b=B, c=C)
    for worker, name in enumerate("abc", 1):
        talk >> ev.Arrived(worker, worker, name) >> ev.CameUp(worker, worker)
    talk >> ev.Finished(4, 2) >> ev.Finished(5, 3)
    talk >> ev.Reloaded(6, Catalog(talk.catalog.models, Limits(max_resident=2, policy="lru")))
    talk << "stop:2 wake:11"
    # The one that is busy counts, and is left alone.
    talk >> ev.Exited(7, 2) >> ev.Reloaded(8, Catalog(talk.catalog.models, Limits(max_resident=1)))
    talk << "stop:3 wake:13"


def test_the_next_models_files_are_read_while_it_waits_for_its_place() -> None:
    talk = Talk(Limits(max_resident=1, max_wait=0), a=A, b=B, c=C)
    talk >> ev.Arrived(0, 1, "a")
    assert talk.ahead == []
    talk >> ev.CameUp(1, 1) >> ev.Arrived(2, 2, "b")
    assert talk.ahead == ["b"]
    talk >> ev.Arrived(3, 3, "c") >> ev.Arrived(4, 4, "b")
    assert talk.ahead == []
    talk >> ev.Finished(5, 1) >> ev.Exited(6, 1) << "start:b=2 wake:106"
    assert talk.ahead == ["c"]
    talk >> ev.Left(7, 3) >> ev.Arrived(8, 5, "c")
    assert talk.ahead == ["c"]
