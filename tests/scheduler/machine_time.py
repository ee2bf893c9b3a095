"""Events of a simulated machine that happen by themselves as time passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swapd.domain import events as ev
from tests.scheduler import external_kills
from tests.scheduler.machine_worker import LOAD_MOST, SERVE_MOST, STOP_MOST

if TYPE_CHECKING:
    from tests.scheduler.machine import Machine


def _due(m: Machine) -> list[tuple[float, str, int]]:
    """Latest times of spontaneous events: (time, kind, object)."""
    due: list[tuple[float, str, int]] = []
    for p in m.processes.values():
        if p.dead:
            continue
        if p.killed:
            due.append((m.now, "exit", p.worker))
        elif p.told is not None and not p.deaf:
            due.append((p.told + STOP_MOST, "exit", p.worker))
        elif not p.ready and not p.deaf:
            due.append((p.born + LOAD_MOST, "up", p.worker))
    stuck = {p.worker for p in m.processes.values() if p.stuck is not None}
    due += [
        (since + SERVE_MOST, "finish", r)
        for r, (worker, since) in m.granted.items()
        if worker not in stuck or r in m.guests
    ]
    due += [(m.now, "look", worker) for worker in m.looks]
    if m.sample_wanted:
        due.append((m.now, "sample", 0))
    if m.wake is not None:
        due.append((m.wake, "wake", 0))
    return due


def advance(m: Machine, seconds: float) -> None:
    """Let time pass; whatever falls due on the way happens, in order."""
    until = m.now + seconds
    steps = 0
    while (due := _due(m)) and min(due)[0] <= until:
        steps += 1
        m.require(steps < 2000, "the machine never comes to rest")
        when, what, whom = min(due)
        m.now = max(m.now, when)
        match what:
            case "exit":
                m.exit(whom, "killed", again=bool(whom % 2))
            case "look":
                external_kills.look(m, whom)
            case "up":
                m.come_up(whom)
            case "finish":
                m.finish(whom)
            case "sample":
                m.sample(10.0)
            case _:
                m.wake = None
                m.tell(ev.TimerFired(m.now))
    m.now = until
