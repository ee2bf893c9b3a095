"""Invariants of groups: models that must not be loaded together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.scheduler.machine_worker import Process

if TYPE_CHECKING:
    from tests.scheduler.machine import Machine


def check(m: Machine) -> None:
    """Check that no worker was started beside one that its group forbids."""
    for newer in m.processes.values():
        for older in m.processes.values():
            apart = newer.started_at > older.started_at and _must_part(m, newer, older)
            m.require(not apart, f"{newer.spec.name} was started beside {older.spec.name}")


def _must_part(m: Machine, newer: Process, older: Process) -> bool:
    new, old = newer.spec.name, older.spec.name
    mine = next((g for g in newer.groups if new in g.members), None)
    if mine is None or new == old or older.spec.serving.pinned or newer.groups != m.limits.groups:
        return False
    if old in mine.members:
        return mine.swap
    return mine.exclusive and not any(g.persistent and old in g.members for g in newer.groups)
