"""Single rules of the scheduler as scripts: `>>` an event, `<<` the commands that follow."""

from __future__ import annotations

import pytest

from swapd.domain import commands as od
from swapd.domain import events as ev
from swapd.domain.models import Catalog, Limits, ModelProfile, ModelSpec
from swapd.scheduler.lifecycle import IllegalTransitionError, Transition, WorkerState, advance
from swapd.scheduler.scheduler import Scheduler
from tests.specs import changed_spec, model_spec


class Talk:
    """`talk >> event << orders`: orders are given as short strings, in the order they come.

    What is to be remembered of a model, or read ahead, stands apart from them.
    """

    def __init__(self, limits: Limits | None = None, **models: ModelSpec) -> None:
        self.catalog = Catalog(models, limits or Limits())
        self.core = Scheduler(self.catalog)
        self.last: list[od.Command] = []
        self.remembered: list[od.SaveProfile] = []
        self.ahead: list[str] = []

    def knowing(self, **learned: ModelProfile) -> Talk:
        """The same from the start, with what was learned at another time."""
        self.core = Scheduler(self.catalog, learned)
        return self

    def __rshift__(self, event: ev.Event) -> Talk:
        orders = self.core.handle(event)
        self.last = [o for o in orders if not isinstance(o, (od.SaveProfile, od.PrefetchFiles))]
        self.ahead = [o.spec.name for o in orders if isinstance(o, od.PrefetchFiles)]
        self.remembered = [o for o in orders if isinstance(o, od.SaveProfile)]
        return self

    def __lshift__(self, expected: str) -> Talk:
        assert " ".join(map(_short, self.last)) == expected, repr(self.core)
        return self


def _short(order: od.Command) -> str:
    match order:
        case od.SampleMemory() | od.QueryFreeMemory():
            return "sample" if isinstance(order, od.SampleMemory) else "look"
        case od.Preload(model):
            return f"bring:{model}"
        case od.SetTimer(when):
            return "wake:never" if when is None else f"wake:{when:g}"
        case _:
            return _told(order)


def _told(order: od.Command) -> str:
    match order:
        case od.Start(worker, spec):
            return f"start:{spec.name}={worker}"
        case od.Stop(worker) | od.Kill(worker):
            return f"{type(order).__name__.lower()}:{worker}"
        case od.AssignWorker(request, worker):
            return f"grant:{request}->{worker}"
        case od.Reject(request, why):
            return f"refuse:{request}:{why.value}"
        case od.CheckLiveness(worker):
            return f"look:{worker}"
        case _:
            return str(order)


def model(name: str, **fields: object) -> ModelSpec:
    return model_spec(name, (name,), start_timeout=100.0, **fields)


A, B, C = model("a"), model("b"), model("c")


def test_a_request_starts_its_model_once_and_is_granted_when_it_is_up() -> None:
    talk = Talk(a=changed_spec(A, slots=2))
    talk >> ev.RequestArrived(0, 1, "a") << "start:a=1 wake:100"
    talk >> ev.RequestArrived(1, 2, "a") << ""
    talk >> ev.RequestArrived(2, 3, "a") << ""
    talk >> ev.WorkerReady(3, 1) << "grant:1->1 grant:2->1 wake:never"
    talk >> ev.RequestFinished(4, 1) << "grant:3->1"
    assert "ready 2/2" in repr(talk.core)


def test_a_worker_that_tells_its_slots_is_believed() -> None:
    talk = Talk(a=A)
    for request in (1, 2, 3):
        talk >> ev.RequestArrived(0, request, "a")
    talk >> ev.WorkerReady(1, 1, slots=2) << "grant:1->1 grant:2->1 wake:never"


def test_the_least_recently_used_makes_room_and_is_really_gone_first() -> None:
    talk = Talk(Limits(max_resident=2, policy="lru"), a=A, b=B, c=C)
    (
        talk
        >> ev.RequestArrived(0, 1, "a")
        >> ev.WorkerReady(1, 1)
        >> ev.RequestArrived(1, 2, "b")
        >> ev.WorkerReady(2, 2)
    )
    talk >> ev.RequestFinished(3, 2) >> ev.RequestFinished(4, 1)
    talk >> ev.RequestArrived(5, 3, "c") << "stop:2 wake:10"
    talk >> ev.WorkerExited(6, 2) << "start:c=3 wake:106"


def test_one_that_is_spared_when_another_alone_is_enough() -> None:
    sizes = {"a": 1, "b": 4, "c": 4}
    specs = {name: model(name, need_bytes=size) for name, size in sizes.items()}
    talk = Talk(Limits(budget_bytes=5, policy="lru"), **specs)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1) >> ev.RequestFinished(2, 1)
    talk >> ev.RequestArrived(2, 2, "b") >> ev.WorkerReady(3, 2) >> ev.RequestFinished(4, 2)
    # a is the older one, but giving up a alone is not enough and giving up b is.
    talk >> ev.RequestArrived(5, 3, "c") << "stop:2 wake:10"


def test_a_busy_worker_yields_to_an_older_request_and_to_no_younger_one() -> None:
    talk = Talk(Limits(max_resident=1, max_turn=0), a=changed_spec(A, slots=2), b=B)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1)
    talk >> ev.RequestArrived(2, 2, "b") << ""
    talk >> ev.RequestArrived(3, 3, "a") << ""
    talk >> ev.RequestFinished(4, 1) << "stop:1 wake:9"
    talk >> ev.WorkerExited(5, 1) << "start:b=2 wake:105"


def test_it_yields_no_longer_when_the_older_request_has_left() -> None:
    talk = Talk(Limits(max_resident=1, max_turn=0), a=changed_spec(A, slots=2), b=B)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1) >> ev.RequestArrived(2, 2, "b")
    talk >> ev.RequestArrived(3, 3, "a") << ""
    talk >> ev.RequestCancelled(4, 2) << "grant:3->1"


def _loaded_twice() -> Talk:
    """Both models are known to load in one second; b is resident and the clock stands at 10."""
    talk = Talk(Limits(max_resident=1, max_turn=60), a=changed_spec(A, slots=2), b=B)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1) >> ev.RequestFinished(2, 1)
    (
        talk
        >> ev.RequestArrived(5, 2, "b")
        >> ev.WorkerExited(6, 1)
        >> ev.WorkerReady(7, 2)
        >> ev.RequestFinished(8, 2)
    )
    return talk >> ev.RequestArrived(9, 3, "b")


def test_a_resident_model_is_served_for_a_turn_while_another_waits() -> None:
    talk = _loaded_twice()
    # A turn is five swaps there and back: ten seconds from when a was asked for.
    talk >> ev.RequestArrived(10, 4, "a") << "wake:20"
    talk >> ev.RequestArrived(11, 5, "b") << ""
    talk >> ev.RequestFinished(12, 3) << "grant:5->2"
    talk >> ev.RequestArrived(13, 6, "b") << ""
    talk >> ev.TimerFired(20) << ""
    talk >> ev.RequestFinished(21, 5) << "stop:2 wake:26"
    talk >> ev.WorkerExited(22, 2) << "start:a=3 wake:122"


def test_a_model_that_falls_idle_gives_its_place_up_unless_its_clients_are_quick() -> None:
    slow = _loaded_twice()
    slow >> ev.RequestFinished(9.5, 3) >> ev.RequestArrived(10, 4, "a") << "stop:2 wake:15"
    quick = _loaded_twice()
    now = 9.5
    quick >> ev.RequestFinished(now, 3)
    for request in range(10, 40):
        (
            quick
            >> ev.RequestArrived(now + 0.01, request, "b")
            >> ev.RequestFinished(now + 0.1, request)
        )
        now += 0.1
    quick >> ev.RequestArrived(now, 4, "a")
    (wake,) = quick.last
    assert isinstance(wake, od.SetTimer)
    assert wake.when is not None
    assert now + 0.02 < wake.when < now + 0.3
    quick >> ev.TimerFired(wake.when)
    assert [type(order) for order in quick.last] == [od.Stop, od.SetTimer]


def test_a_turn_is_never_longer_than_max_wait() -> None:
    talk = _loaded_twice()
    talk >> ev.CatalogReloaded(9, Catalog(talk.catalog.models, Limits(max_resident=1, max_turn=3)))
    talk >> ev.RequestArrived(10, 4, "a") << "wake:13"


def test_time_to_live_counts_from_the_end_of_the_last_request() -> None:
    talk = Talk(a=changed_spec(A, ttl=10.0))
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1) << "grant:1->1 wake:never"
    talk >> ev.RequestFinished(50, 1) << "wake:60"
    # Being looked at is no use: a request without a slot does not count.
    talk >> ev.RequestArrived(55, 2, "a", needs_slot=False) << "grant:2->1"
    talk >> ev.RequestFinished(56, 2) << ""
    talk >> ev.TimerFired(60) << "stop:1 wake:65"
    talk >> ev.TimerFired(65) << "kill:1"
    talk >> ev.WorkerExited(66, 1) << ""
    assert talk.core.at_rest


def test_pressure_takes_one_idle_worker_a_sample_and_never_a_busy_one() -> None:
    talk = Talk(Limits(threshold_percent=75, interval=30, policy="lru"), a=A, b=B, c=C)
    for worker, name in enumerate("abc", 1):
        talk >> ev.RequestArrived(0, worker, name) >> ev.WorkerReady(worker, worker)
    talk >> ev.RequestFinished(4, 2) >> ev.RequestFinished(5, 1)
    talk >> ev.MemorySampled(6, 90, {}) << "stop:2 wake:11"
    talk >> ev.MemorySampled(7, 90, {}) << ""
    talk >> ev.WorkerExited(8, 2) << "sample wake:38"
    talk >> ev.MemorySampled(9, 90, {}) << "stop:1 wake:14"
    talk >> ev.WorkerExited(10, 1) << "sample wake:40"
    talk >> ev.MemorySampled(11, 90, {}) << ""
    talk >> ev.RequestFinished(12, 3) << "sample wake:42"
    talk >> ev.TimerFired(42) << "sample wake:72"
    talk >> ev.MemorySampled(43, 74, {}) << ""
    talk >> ev.MemorySampled(44, 76, {}) << "stop:3 wake:49"


def test_what_was_measured_replaces_the_estimate() -> None:
    sizes = Limits(budget_bytes=10)
    talk = Talk(sizes, a=model("a", need_bytes=8), b=model("b", need_bytes=8))
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1) << "sample grant:1->1 wake:31"
    talk >> ev.MemorySampled(2, 10, {1: 2}) >> ev.RequestArrived(3, 2, "b") << "start:b=2"
    assert [s.bytes for s in talk.core.status()] == [2, 8]


def test_more_than_the_budget_is_refused_with_the_numbers() -> None:
    talk = Talk(Limits(budget_bytes=10 * 2**20), a=model("a", need_bytes=12 * 2**20))
    talk >> ev.RequestArrived(0, 1, "a") << "refuse:1:too_large"
    (refusal,) = talk.last
    assert isinstance(refusal, od.Reject)
    assert refusal.message == ("'a' needs 12 MiB, 2 MiB more than the memory budget of 10 MiB")


def test_failed_starts_cool_down_and_the_rest_grows() -> None:
    talk = Talk(a=A)
    now, rests = 0.0, []
    for request in range(1, 9):
        talk >> ev.RequestArrived(now, request, "a")
        talk >> ev.WorkerExited(now, request, "no") << f"refuse:{request}:start_failed wake:never"
        (refusal, _) = talk.last
        assert isinstance(refusal, od.Reject)
        assert refusal.message == "'a' failed: no"
        rests.append(refusal.retry_after)
        talk >> ev.RequestArrived(now, 100 + request, "a") << f"refuse:{100 + request}:start_failed"
        now += refusal.retry_after
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60]
    (
        talk
        >> ev.RequestArrived(now, 200, "a")
        >> ev.WorkerReady(now, 9)
        >> ev.RequestFinished(now + 1, 200)
    )
    assert talk.core.status()[0].state == "ready"
    (
        talk
        >> ev.WorkerExited(now + 2, 9, "crashed")
        >> ev.RequestArrived(now + 3, 201, "a")
        << f"start:a=10 wake:{now + 103:g}"
    )
    # What was answered has made up for all that.
    talk >> ev.WorkerExited(now + 4, 10, "no") << "refuse:201:start_failed wake:never"
    (refusal, _) = talk.last
    assert isinstance(refusal, od.Reject)
    assert refusal.retry_after == 1


def test_a_crash_after_coming_up_rests_the_model_from_the_third_time_on() -> None:
    talk = Talk(a=A)
    for request in (1, 2, 3):
        now = 10 * request
        talk >> ev.RequestArrived(now, request, "a") << f"start:a={request} wake:{now + 100}"
        talk >> ev.WorkerReady(now + 1, request) >> ev.WorkerExited(now + 2, request, "boom")
        talk >> ev.RequestFinished(now + 2, request, answered=False)
    talk >> ev.RequestArrived(33, 4, "a") << "refuse:4:start_failed"


def test_a_start_that_somebody_kills_is_tried_again_twice() -> None:
    talk = Talk(a=A)
    talk >> ev.RequestArrived(0, 1, "a") << "start:a=1 wake:100"
    talk >> ev.WorkerExited(1, 1, "killed", killed_externally=True) << "start:a=2 wake:101"
    talk >> ev.WorkerExited(2, 2, "killed", killed_externally=True) << "start:a=3 wake:102"
    (
        talk
        >> ev.WorkerExited(3, 3, "killed", killed_externally=True)
        << "refuse:1:start_failed wake:never"
    )


def test_a_worker_that_does_not_come_up_in_time_is_killed_and_that_is_the_reason() -> None:
    talk = Talk(a=A)
    talk >> ev.RequestArrived(0, 1, "a") << "start:a=1 wake:100"
    talk >> ev.TimerFired(100) << "kill:1"
    talk >> ev.WorkerExited(101, 1, "killed") << "refuse:1:start_failed"
    (refusal,) = talk.last
    assert isinstance(refusal, od.Reject)
    assert refusal.message == "'a' failed: it was not ready within 100 s"


def test_queues_have_bounds_each_and_all_together() -> None:
    talk = Talk(Limits(max_queued=3), a=changed_spec(A, max_queue=2), b=B)
    for request in (1, 2):
        talk >> ev.RequestArrived(0, request, "a")
    talk >> ev.RequestArrived(0, 3, "a") << "refuse:3:queue_full"
    talk >> ev.RequestArrived(0, 4, "b") >> ev.RequestArrived(0, 5, "b") << "refuse:5:overloaded"
    unbounded = Talk(Limits(max_queued=0), a=A)
    unbounded >> ev.RequestArrived(0, 1, "a") << "start:a=1 wake:100"


def test_the_time_to_come_back_is_measured() -> None:
    talk = Talk(a=changed_spec(A, max_queue=1))
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(0, 1) >> ev.RequestFinished(30, 1)
    (
        talk
        >> ev.RequestArrived(30, 2, "a")
        >> ev.RequestArrived(30, 3, "a")
        >> ev.RequestArrived(30, 4, "a")
    )
    (refusal,) = talk.last
    assert isinstance(refusal, od.Reject)
    assert refusal.retry_after == 60.0


def test_unloading_by_hand_drains_and_a_new_request_starts_anew() -> None:
    talk = Talk(a=changed_spec(A, slots=2))
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1)
    talk >> ev.UnloadRequested(2, "a") << ""
    talk >> ev.RequestArrived(3, 2, "a") << "start:a=2 wake:103"
    talk >> ev.RequestFinished(4, 1) << "stop:1 wake:9"


def test_closing_serves_what_has_a_worker_and_refuses_the_rest() -> None:
    talk = Talk(Limits(max_resident=2), a=A, b=B, c=C)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1) >> ev.RequestArrived(1, 2, "a")
    talk >> ev.RequestArrived(1, 3, "b") >> ev.RequestArrived(1, 4, "c")
    talk >> ev.ShutdownRequested(2, 32) << "refuse:4:closing wake:32"
    talk >> ev.RequestArrived(3, 5, "a") << "refuse:5:closing"
    talk >> ev.RequestFinished(4, 1) << "grant:2->1"
    talk >> ev.RequestFinished(5, 2) << "stop:1 wake:10"
    talk >> ev.WorkerExited(6, 1) << "wake:32"
    talk >> ev.TimerFired(32) << "refuse:3:closing stop:2 kill:2"
    talk >> ev.WorkerExited(33, 2) << ""
    assert talk.core.at_rest


def test_a_reload_keeps_what_did_not_change() -> None:
    talk = Talk(a=A, b=B, c=C)
    for worker, name in enumerate("abc", 1):
        talk >> ev.RequestArrived(0, worker, name) >> ev.WorkerReady(1, worker)
    new = {"a": changed_spec(A, ttl=9.0), "b": changed_spec(B, argv=("b", "--other"))}
    talk >> ev.RequestFinished(2, 1) >> ev.RequestFinished(2, 3)
    talk >> ev.CatalogReloaded(3, Catalog(new, Limits())) << "start:b=4 stop:3 wake:8"
    assert [s.state for s in talk.core.status()] == ["ready", "ready", "stopping", "starting"]
    talk >> ev.WorkerReady(4, 4) >> ev.RequestFinished(4, 2) << "stop:2"
    talk >> ev.WorkerExited(5, 3) >> ev.WorkerExited(5, 2) << "wake:11"


@pytest.mark.parametrize(
    ("state", "step"),
    [
        (WorkerState.READY, Transition.BECAME_READY),
        (WorkerState.DRAINING, Transition.DRAIN),
        (WorkerState.STOPPING, Transition.STOP),
        (WorkerState.STARTING, Transition.DRAIN),
        (WorkerState.GONE, Transition.EXITED),
    ],
)
def test_an_illegal_step_says_what_and_where(state: WorkerState, step: Transition) -> None:
    with pytest.raises(IllegalTransitionError, match=f"'{step.value}'.*{state.value}"):
        advance(state, step)


def test_lowered_limits_send_idle_workers_away() -> None:
    talk = Talk(Limits(policy="lru"), a=A, b=B, c=C)
    for worker, name in enumerate("abc", 1):
        talk >> ev.RequestArrived(worker, worker, name) >> ev.WorkerReady(worker, worker)
    talk >> ev.RequestFinished(4, 2) >> ev.RequestFinished(5, 3)
    talk >> ev.CatalogReloaded(
        6, Catalog(talk.catalog.models, Limits(max_resident=2, policy="lru"))
    )
    talk << "stop:2 wake:11"
    # The one that is busy counts, and is left alone.
    (
        talk
        >> ev.WorkerExited(7, 2)
        >> ev.CatalogReloaded(8, Catalog(talk.catalog.models, Limits(max_resident=1)))
    )
    talk << "stop:3 wake:13"


def test_the_next_models_files_are_read_while_it_waits_for_its_place() -> None:
    talk = Talk(Limits(max_resident=1, max_turn=0), a=A, b=B, c=C)
    talk >> ev.RequestArrived(0, 1, "a")
    assert talk.ahead == []
    talk >> ev.WorkerReady(1, 1) >> ev.RequestArrived(2, 2, "b")
    assert talk.ahead == ["b"]
    talk >> ev.RequestArrived(3, 3, "c") >> ev.RequestArrived(4, 4, "b")
    assert talk.ahead == []
    talk >> ev.RequestFinished(5, 1) >> ev.WorkerExited(6, 1) << "start:b=2 wake:106"
    assert talk.ahead == ["c"]
    talk >> ev.RequestCancelled(7, 3) >> ev.RequestArrived(8, 5, "c")
    assert talk.ahead == ["c"]
