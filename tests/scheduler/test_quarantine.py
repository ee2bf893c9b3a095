"""Workers that end or hang under their requests: who is served again, alone, or no more."""

from __future__ import annotations

import pytest

from swapd.domain import commands as od
from swapd.domain import events as ev
from swapd.domain.models import Catalog, Limits
from swapd.scheduler import handlers, quarantine
from swapd.scheduler.emitter import Emitter
from swapd.scheduler.queue import QueuedRequest
from swapd.scheduler.records import WorkerRecord
from swapd.scheduler.state import SchedulerState
from tests.scheduler.catalogs import catalog
from tests.scheduler.histories import Deed, follow
from tests.scheduler.machine import BreachError
from tests.scheduler.test_properties import plant, search_for_a_breach
from tests.scheduler.test_rules import A, B, Talk
from tests.specs import changed_spec

WIDE = changed_spec(A, slots=3)


def _three_served() -> Talk:
    talk = Talk(a=WIDE)
    for request in (1, 2, 3):
        talk >> ev.RequestArrived(request, request, "a")
    return talk >> ev.WorkerReady(4, 1) << "grant:1->1 grant:2->1 grant:3->1 wake:never"


def _return(talk: Talk, now: float, *requests: int) -> Talk:
    for request in requests:
        talk >> ev.RequestRetried(now, request, f"print {request}")
    return talk


def test_who_loses_a_worker_is_served_again_before_those_who_came_later() -> None:
    talk = _three_served()
    talk >> ev.RequestArrived(5, 4, "a") >> ev.RequestArrived(6, 5, "a") << ""
    talk >> ev.WorkerExited(7, 1, "boom") << "start:a=2 wake:107"
    _return(talk, 7, 3, 1, 2)
    talk >> ev.WorkerReady(8, 2) << "grant:1->2 grant:2->2 grant:3->2 wake:never"


def test_one_accident_makes_nobody_a_suspect() -> None:
    talk = _three_served()
    _return(talk >> ev.WorkerExited(5, 1, "boom"), 5, 1, 2, 3)
    talk >> ev.WorkerReady(6, 2) << "grant:1->2 grant:2->2 grant:3->2 wake:never"
    assert talk.core.tracks_fingerprints
    for request in (1, 2, 3):
        talk >> ev.RequestFinished(7, request)
    assert not talk.core.tracks_fingerprints


def test_a_poisonous_one_is_found_and_those_beside_it_are_served() -> None:
    talk = _three_served()
    _return(talk >> ev.WorkerExited(5, 1, "boom"), 5, 1, 2, 3)
    _return(talk >> ev.WorkerReady(6, 2) >> ev.WorkerExited(7, 2, "boom"), 7, 1, 2, 3)
    talk >> ev.WorkerReady(8, 3) << "grant:1->3 wake:never"
    talk >> ev.RequestArrived(9, 4, "a") << ""
    talk >> ev.RequestFinished(10, 1) << "grant:2->3"
    talk >> ev.WorkerExited(11, 3, "bang") << "start:a=4 wake:111"
    _return(talk, 11, 2) << "refuse:2:poison"
    (refusal,) = talk.last
    assert isinstance(refusal, od.Reject)
    assert refusal.message == (
        "this request ended its worker twice and is refused for 10 minutes: bang"
    )
    talk >> ev.WorkerReady(12, 4) << "grant:3->4 wake:never"
    talk >> ev.RequestFinished(13, 3) << "grant:4->4"
    # By its fingerprint it is known when it comes again, for a while.
    talk >> ev.RequestArrived(14, 5, "a", fingerprint="print 2") << "refuse:5:poison"
    talk >> ev.RequestArrived(612, 6, "a", fingerprint="print 2") << "grant:6->4"


def test_a_request_that_can_not_come_again_is_known_by_its_fingerprint() -> None:
    talk = Talk(a=WIDE)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1) >> ev.WorkerExited(2, 1, "boom")
    talk >> ev.RequestFinished(2, 1, answered=False, fingerprint="p")
    (
        talk
        >> ev.RequestArrived(3, 2, "a", fingerprint="p")
        >> ev.WorkerReady(4, 2)
        >> ev.WorkerExited(5, 2, "boom")
    )
    talk >> ev.RequestFinished(5, 2, answered=False, fingerprint="p")
    talk >> ev.RequestArrived(6, 3, "a", fingerprint="p") << "refuse:3:poison"
    talk >> ev.RequestArrived(6, 4, "a", fingerprint="q") << "start:a=3 wake:106"


def test_whoever_is_killed_from_outside_however_often_makes_nobody_a_suspect() -> None:
    talk = _three_served() >> ev.RequestArrived(4.5, 4, "a")
    for worker in range(1, quarantine.MAX_KILLS):
        now = 5 * worker
        talk >> ev.WorkerExited(now, worker, "killed", killed_externally=True)
        _return(talk, now, 1, 2, 3) >> ev.WorkerReady(now + 1, worker + 1)
        talk << f"grant:1->{worker + 1} grant:2->{worker + 1} grant:3->{worker + 1} wake:never"
    assert not talk.core.tracks_fingerprints
    talk >> ev.RequestFinished(53, 1) << f"grant:4->{quarantine.MAX_KILLS}"
    (
        talk
        >> ev.RequestFinished(53, 2)
        >> ev.WorkerExited(54, quarantine.MAX_KILLS, "killed", killed_externally=True)
    )
    _return(talk, 54, 3) << "refuse:3:worker_failed"


def test_what_swapd_ends_itself_is_nobodys_fault() -> None:
    talk = Talk(a=A)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(1, 1) >> ev.ShutdownRequested(2, 3)
    talk >> ev.TimerFired(3) << "kill:1"
    talk >> ev.WorkerExited(4, 1, "killed")
    talk >> ev.RequestFinished(4, 1, answered=False, fingerprint="p")
    assert not talk.core.tracks_fingerprints


def test_one_under_whom_three_workers_end_in_whatever_company_has_had_its_tries() -> None:
    talk = Talk(a=A)
    for worker in (1, 2, 3):
        talk >> ev.RequestArrived(worker, worker, "a") >> ev.WorkerReady(worker, worker)
        talk >> ev.RequestArrived(worker, 10, "a", needs_slot=False) if worker == 1 else talk
        talk >> ev.RequestFinished(worker, worker) >> ev.WorkerExited(worker, worker, "boom")
        talk >> ev.RequestRetried(worker, 10, "p")
    talk << "refuse:10:worker_failed"


def test_a_silent_worker_is_looked_at_twice_within_the_time_out_and_killed_at_its_end() -> None:
    talk = Talk(a=changed_spec(A, hang_timeout=30.0))
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(10, 1) << "grant:1->1 wake:25"
    talk >> ev.TimerFired(25) << "look:1"
    talk >> ev.LivenessReported(25, 1, 24.0) << "wake:40"
    talk >> ev.TimerFired(40) << "look:1"
    talk >> ev.LivenessReported(40, 1, 24.0) << "wake:54"
    talk >> ev.TimerFired(54) << "look:1"
    talk >> ev.LivenessReported(54, 1, 24.0) << "kill:1"
    (kill,) = talk.last
    assert kill == od.Kill(1, "the worker hung: 30 s without progress", hung=True)
    talk >> ev.WorkerExited(55, 1, "ended by SIGKILL") >> ev.RequestRetried(55, 1, "p")
    talk >> ev.WorkerReady(56, 2) << "grant:1->2 wake:71"


def test_a_look_that_comes_late_starts_anew_because_swapd_itself_stood_still() -> None:
    talk = Talk(a=changed_spec(A, hang_timeout=30.0))
    (
        talk
        >> ev.RequestArrived(0, 1, "a")
        >> ev.WorkerReady(10, 1)
        >> ev.TimerFired(500)
        << "wake:515"
    )


def test_at_rest_nobody_is_looked_at() -> None:
    talk = Talk(a=changed_spec(A, hang_timeout=30.0))
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(10, 1) >> ev.RequestFinished(11, 1) << ""
    talk >> ev.TimerFired(25) << ""
    talk >> ev.RequestArrived(26, 2, "a") << "grant:2->1 wake:41"
    assert talk.core.status()[0].busy == 1


def test_a_time_out_may_come_with_a_reload() -> None:
    talk = Talk(a=A, b=B)
    talk >> ev.RequestArrived(0, 1, "a") >> ev.WorkerReady(10, 1) << "grant:1->1 wake:never"
    new = {"a": changed_spec(A, hang_timeout=8.0)}
    talk >> ev.CatalogReloaded(20, Catalog(new, Limits())) << "wake:24"


def _never_watch(self: Emitter, worker: WorkerRecord, now: float) -> None:
    """Schedule no liveness check."""


def _hasty(state: SchedulerState, event: ev.LivenessReported, emit: Emitter) -> None:
    """Find a worker hung too soon."""
    late = ev.LivenessReported(event.now + 10.0, event.worker, event.last_progress)
    _liveness_reported(state, late, emit)


def _forgiving(state: SchedulerState, event: ev.RequestRetried, emit: Emitter) -> None:
    """Forget the crashes that a request may have caused."""
    state.assigned[event.request].request.crashes = 0
    _request_retried(state, event, emit)


def _not_isolated(self: Emitter, request: QueuedRequest, worker: WorkerRecord, now: float) -> None:
    """Serve suspects beside other requests."""
    _assign(self, request, worker, now)
    worker.isolated = False


def _condemn_all(state: SchedulerState, event: ev.RequestRetried, emit: Emitter) -> None:
    """Find every request that lost its worker to be the cause."""
    request = state.assigned[event.request].request
    request.crashes = max(request.crashes, 1)
    state.quarantine.worker_crashed([request], "boom")
    _request_retried(state, event, emit)


_liveness_reported, _request_retried = handlers.liveness_reported, handlers.request_retried
_assign = Emitter.assign


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "name", "fault"),
    [
        (Emitter, "watch", _never_watch),
        (handlers, "liveness_reported", _hasty),
        (handlers, "request_retried", _condemn_all),
    ],
    ids=lambda f: getattr(f, "__name__", f),
)
def test_a_planted_fault_is_found(
    place: object, name: str, fault: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, place, name, fault)
    with pytest.raises(BreachError):
        search_for_a_breach()


@pytest.mark.parametrize(
    ("place", "name", "fault"),
    [(Emitter, "assign", _not_isolated), (handlers, "request_retried", _forgiving)],
    ids=["not isolated", "crashes forgotten"],
)
def test_a_suspect_that_is_not_served_alone_is_found(
    place: object, name: str, fault: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = catalog({"a": 1}, Limits(), slots=2)
    lost: list[Deed] = [("up", 0, 0.0), ("again", 0, 0.0)]
    deeds: list[Deed] = [("arrive", 0, 0.0), *lost, ("arrive", 0, 0.0), *lost, ("up", 0, 0.0)]
    follow(world, [*deeds, ("arrive", 0, 0.0)])
    plant(monkeypatch, place, name, fault)
    with pytest.raises(BreachError, match="is served beside"):
        follow(world, [*deeds, ("arrive", 0, 0.0)])


def test_remembered_fingerprints_have_a_bound() -> None:
    talk = Talk(a=A)
    for number in range(quarantine.MAX_FINGERPRINTS + 50):
        worker = number + 1
        (
            talk
            >> ev.RequestArrived(number * 0.001, number, "a")
            >> ev.WorkerReady(number * 0.001, worker)
        )
        talk >> ev.RequestFinished(number * 0.001, number)
        talk >> ev.RequestArrived(number * 0.001, 10**6 + number, "a")
        talk >> ev.WorkerExited(number * 0.001, worker, "boom")
        talk >> ev.RequestFinished(number * 0.001, 10**6 + number, False, fingerprint=f"p{number}")
    talk >> ev.RequestArrived(2, 10**7, "a", fingerprint="p0")
    assert len(talk.core._state.quarantine._suspicions) <= quarantine.MAX_FINGERPRINTS
