"""Histories of events for Hypothesis: scripts that any machine can follow to the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from hypothesis import strategies as st

from swapd.domain.models import Catalog, Group, Limits
from swapd.scheduler.scheduler import Scheduler
from tests.scheduler.catalogs import altered, catalog
from tests.scheduler.machine import Machine
from tests.scheduler.machine_worker import Process

Deed: TypeAlias = tuple[str, int, float]
"""Action, index of its object (modulo their number), and a number for the action."""

NAMES = ("a", "b", "c", "d")

POLICIES = ("cost", "cost", "lru", "lru-ttl", "lfu", "ttl", "no-evict")
GROUPS = (
    *((), (), ()),
    (Group("pair", frozenset("ab"), exclusive=False),),
    (Group("alone", frozenset("a")), Group("rest", frozenset("cd"), exclusive=False)),
    (Group("team", frozenset("abc"), swap=False, exclusive=False, together=True),),
    (
        Group("big", frozenset("ab"), swap=False),
        Group("kept", frozenset("c"), exclusive=False, persistent=True),
    ),
)
TENANTS = ("", "", "x", "y")
PRIORITIES = (0, 0, 0, 1, -1)
KEEP_ALIVE = (None, None, 0.0, 3.0, -1.0)

worlds = st.builds(
    lambda needs, limits, slots, ttl, max_queue, pinned, hang, stay: catalog(
        dict(zip(NAMES, needs, strict=True)),
        limits,
        slots,
        ttl,
        max_queue,
        pinned,
        hang_timeout=hang,
        min_residency=stay,
    ),
    st.lists(st.integers(0, 6), min_size=4, max_size=4),
    st.builds(
        Limits,
        max_resident=st.integers(0, 3),
        budget_bytes=st.sampled_from([0, 6, 8, 10]),
        threshold_percent=st.sampled_from([0.0, 75.0, 75.0]),
        psi_threshold_percent=st.sampled_from([0.0, 10.0]),
        critical_percent=st.sampled_from([0.0, 95.0]),
        require_free_memory=st.booleans(),
        interval=st.just(30.0),
        max_queued=st.sampled_from([6, 512]),
        max_turn=st.sampled_from([0.0, 4.0, 60.0]),
        max_per_tenant=st.sampled_from([0, 0, 2]),
        policy=st.sampled_from(POLICIES),
        groups=st.sampled_from(GROUPS),
    ),
    st.integers(1, 3),
    st.sampled_from([0.0, 2.0, 20.0]),
    st.sampled_from([1, 4, 64]),
    st.sampled_from(["", "", "a", "ab"]),
    st.sampled_from([0.0, 4.0, 15.0]),
    st.sampled_from([0.0, 0.0, 9.0]),
)

deeds = st.tuples(
    st.sampled_from(
        ["arrive"] * 4
        + ["tenant"] * 3
        + ["keep", "policy"]
        + ["up"] * 3
        + ["finish"] * 3
        + ["exit"] * 2
        + ["advance"] * 2
        + ["sample"] * 2
        + ["foreign"] * 2
        + ["press", "leave", "guest", "crash", "deafen", "stick", "again", "reload", "limit"]
        + ["unload", "fail"]
        + ["close"]
    ),
    st.integers(0, 11),
    st.sampled_from([0.0, 0.5, 1.0, 3.0, 7.0, 40.0]),
)

# A plain list is five deeds long on the average: the deep faults would stay unfound.
histories = st.one_of(st.lists(deeds, min_size=25, max_size=80), st.lists(deeds, max_size=25))


def follow(
    world: Catalog, history: list[Deed], make: Callable[[Catalog], Scheduler] = Scheduler
) -> Machine:
    """Play a history on a new machine, then let it run out; raises BreachError on a breach."""
    machine = Machine(make(world))
    for deed in history:
        _do(machine, deed)
    machine.settle_down()
    return machine


def _do(m: Machine, deed: Deed) -> None:
    what, which, number = deed
    if what in ("up", "fail", "exit", "crash", "again", "deafen", "stick"):
        _do_to_a_worker(m, what, which, number)
    elif what in ("leave", "finish"):
        requests = sorted(m.open if what == "leave" else m.granted)
        if requests:
            request = requests[which % len(requests)]
            m.leave(request) if what == "leave" else m.finish(request, tokens=int(number) * 100)
    elif what in ("arrive", "tenant", "keep", "guest"):
        _ask(m, what, which, number)
    elif what == "reload":
        _reload(m, NAMES[which % 4], which, number)
    else:
        _do_to_all(m, what, which, number)


def _do_to_a_worker(m: Machine, what: str, which: int, number: float) -> None:
    if what in ("up", "fail"):
        workers = [p.worker for p in m.processes.values() if not p.ready and not p.killed]
    elif what == "exit":
        workers = [p.worker for p in m.processes.values() if p.told is not None or p.killed]
    else:
        workers = list(m.processes)
    if not workers:
        return
    worker = workers[which % len(workers)]
    if what == "up":
        m.come_up(worker)
    elif what == "deafen":
        m.processes[worker].deaf = True
    elif what == "stick":
        _stick(m, m.processes[worker])
    else:
        m.exit(worker, again=what == "again", killed_externally=number > 5)


def _stick(m: Machine, process: Process) -> None:
    """Without a timeout it would never be found."""
    if process.ready and process.stuck is None and m.spec(process).serving.hang_timeout:
        process.stuck, process.deaf = m.now, True


def _reload(m: Machine, name: str, which: int, number: float) -> None:
    now = m.scheduler.catalog
    if name not in now.models:
        return
    if number > 5:
        rest = {k: v for k, v in now.models.items() if k != name}
        m.reload(Catalog(rest, now.limits))
    elif number > 0.5:
        m.reload(altered(now, name, argv=(name, str(number)), need_bytes=which % 7))
    else:
        terms = {"ttl": number * 6, "slots": 1 + which % 3, "pinned": which == 3}
        terms |= {"weight": 1.0 + which % 2, "priority": which % 2}
        m.reload(altered(now, name, **terms))


def _ask(m: Machine, what: str, which: int, number: float) -> None:
    match what:
        case "arrive":
            m.arrive(NAMES[which % 4])
        case "tenant":
            # Which and number are drawn apart: all their pairs come up.
            tenant, priority = TENANTS[which // 3], PRIORITIES[int(number) % 5]
            m.arrive(NAMES[which % 4], tenant=tenant, priority=priority)
        case "keep":
            m.arrive(NAMES[which % 4], keep_alive=KEEP_ALIVE[int(number) % 5])
        case _:
            m.arrive(NAMES[which % 4], needs_slot=False)


def _do_to_all(m: Machine, what: str, which: int, number: float) -> None:
    now = m.scheduler.catalog
    match what:
        case "advance":
            m.advance(number)
        case "sample":
            held = {w: int(number) for w in list(m.processes)[: which % 3]}
            m.sample(90.0 if which % 2 else 10.0, held, pressure_percent=10 * number)
        case "press":
            m.sample(90.0 if number else 99.0)
            m.sample(90.0)
        case "foreign":
            m.foreign = which
        case "limit":
            limits = replace(now.limits, max_resident=which % 4, budget_bytes=int(number) * 2)
            m.reload(Catalog(now.models, limits))
        case "policy":
            policy, groups = POLICIES[which % 7], GROUPS[int(number) % 7]
            m.reload(Catalog(now.models, replace(now.limits, policy=policy, groups=groups)))
        case "unload":
            m.unload(NAMES[which % 4] if which < 8 else None)
        case "close":
            m.close(number)
        case _:
            raise ValueError(what)
