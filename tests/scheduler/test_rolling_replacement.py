"""A worker whose configuration has changed, and the one that takes its place."""

from __future__ import annotations

import pytest

from swapd.domain import commands as od
from swapd.domain import events as ev
from swapd.domain.models import Catalog, Group, Limits
from tests.scheduler.test_rules import A, Talk, model
from tests.specs import changed_spec

B = model("b", need_bytes=10)
NEW = changed_spec(B, argv=("b", "--other"))
NEWER = changed_spec(B, argv=("b", "--another"))


def busy(limits: Limits | None = None) -> Talk:
    """Return a script with a worker of b that serves request 1."""
    talk = Talk(limits, a=A, b=B)
    talk >> ev.RequestArrived(0, 1, "b") >> ev.WorkerReady(1, 1)
    return talk


def reload(talk: Talk, **models: object) -> Talk:
    """From now on these models."""
    before = talk.core.catalog
    return talk >> ev.CatalogReloaded(2, Catalog({**before.models, **models}, before.limits))  # type: ignore[dict-item]


def states(talk: Talk) -> list[str]:
    return [s.state for s in talk.core.status()]


def test_the_old_one_serves_until_the_new_one_is_ready() -> None:
    talk = busy()
    reload(talk, b=NEW) << "start:b=2 wake:102"
    assert states(talk) == ["ready", "starting"]
    talk >> ev.RequestFinished(3, 1) << ""
    talk >> ev.RequestArrived(4, 2, "b") << "grant:2->1"
    talk >> ev.RequestArrived(5, 3, "b") << ""
    talk >> ev.WorkerReady(6, 2) << "grant:3->2 wake:never"
    assert states(talk) == ["draining", "ready"]
    talk >> ev.RequestFinished(7, 2) << "stop:1 wake:12"
    talk >> ev.WorkerExited(8, 1) << "wake:never"


def test_an_idle_one_is_replaced_too() -> None:
    talk = busy() >> ev.RequestFinished(1, 1)
    reload(talk, b=NEW) << "start:b=2 wake:102"
    talk >> ev.WorkerReady(3, 2) << "stop:1 wake:8"


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_resident=1),
        Limits(budget_bytes=19),
        Limits(groups=(Group("g", frozenset("ab")),)),
    ],
)
def test_where_there_is_no_room_for_both_the_old_one_drains_first(limits: Limits) -> None:
    talk = busy(limits)
    reload(talk, b=NEW)
    assert states(talk) == ["draining"]
    talk >> ev.RequestFinished(3, 1)
    assert states(talk) == ["stopping"]


def test_others_that_wait_for_room_come_first() -> None:
    sizes = {"a": 8, "b": 1, "c": 9}
    specs = {name: model(name, need_bytes=size) for name, size in sizes.items()}
    talk = Talk(Limits(budget_bytes=10), **specs)
    for request, name in ((1, "a"), (2, "b")):
        talk >> ev.RequestArrived(0, request, name) >> ev.WorkerReady(0, request)
    talk >> ev.RequestArrived(1, 3, "c")
    reload(talk, b=changed_spec(specs["b"], argv=("b", "--other")))
    assert states(talk) == ["ready", "draining"]


@pytest.mark.parametrize(("free", "then"), [(99, ["ready", "starting"]), (1, ["draining"])])
def test_memory_that_others_hold_is_looked_at_first(free: int, then: list[str]) -> None:
    talk = Talk(Limits(budget_bytes=100, require_free_memory=True), b=B)
    talk >> ev.RequestArrived(0, 1, "b") >> ev.FreeMemoryReported(0, 50) >> ev.WorkerReady(1, 1)
    reload(talk, b=NEW)
    assert states(talk) == ["ready"]
    assert od.QueryFreeMemory() in talk.last
    talk >> ev.FreeMemoryReported(3, free)
    assert states(talk) == then


def test_a_new_one_that_fails_beside_the_old_may_try_without_it() -> None:
    talk = busy()
    reload(talk, b=NEW)
    talk >> ev.WorkerExited(3, 2, "no memory")
    assert states(talk) == ["draining"]
    talk >> ev.RequestArrived(4, 2, "b") << "start:b=3 wake:104"
    talk >> ev.WorkerExited(5, 3, "no luck") << "refuse:2:start_failed wake:never"


def test_one_that_is_right_again_stays() -> None:
    talk = busy()
    reload(talk, b=NEW)
    reload(talk, b=B) << "stop:2 wake:7"
    assert states(talk) == ["ready", "stopping"]
    talk >> ev.WorkerExited(3, 2) << "wake:never"
    talk >> ev.RequestFinished(4, 1) >> ev.RequestArrived(4, 2, "b") << "grant:2->1"


def test_another_reload_starts_no_second_heir() -> None:
    talk = busy()
    reload(talk, b=NEW)
    reload(talk, a=changed_spec(A, argv=("a", "--other"))) << ""
    talk >> ev.WorkerReady(3, 2)
    assert states(talk) == ["draining", "ready"]


def test_a_change_on_top_of_a_change_has_one_successor() -> None:
    talk = busy()
    reload(talk, b=NEW)
    reload(talk, b=NEWER) << "stop:2 start:b=3 wake:7"
    talk >> ev.WorkerReady(3, 2) << ""
    talk >> ev.WorkerExited(3, 2) >> ev.WorkerReady(4, 3)
    assert states(talk) == ["draining", "ready"]


def test_when_the_old_one_goes_the_new_one_stays_for_who_waits() -> None:
    for waiting in (True, False):
        talk = busy()
        reload(talk, b=NEW)
        if waiting:
            talk >> ev.RequestArrived(3, 2, "b") << ""
        talk >> ev.WorkerExited(3, 1, "exit status 1")
        assert states(talk) == ["starting" if waiting else "stopping"]
    talk = busy() >> ev.RequestFinished(1, 1)
    reload(talk, b=NEW)
    talk >> ev.UnloadRequested(3, "b")
    assert states(talk) == ["stopping", "stopping"]


def test_a_shutdown_waits_for_no_successor() -> None:
    talk = busy()
    reload(talk, b=NEW)
    talk >> ev.ShutdownRequested(3, 30)
    assert states(talk) == ["ready", "stopping"]
