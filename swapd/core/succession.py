"""Workers whose configuration has changed: the new one is ready before the old one goes.

Where there is room for both. Else, or when the new one does not come up beside the old, the old
one drains first, as it would without this: what is configured counts, not what once worked.
"""

from __future__ import annotations

from swapd.core.groups import group_of
from swapd.core.lifecycle import State
from swapd.core.placing import Placing
from swapd.core.resident import Resident
from swapd.core.room import missing
from swapd.domain.commands import LookAtFree
from swapd.domain.models import ModelSpec


class Succession(Placing):
    """The part of the settle pass that gives outdated workers their heirs."""

    def _succeed(self, now: float) -> None:
        """Start an heir beside each outdated worker, or let that one drain."""
        for worker in list(self._outdated):
            resident = self._books.residents.get(worker)
            spec = self._successor(resident) if resident is not None else None
            if resident is None or spec is None:
                del self._outdated[worker]
            elif not self._may_be_beside(spec):
                del self._outdated[worker]
                self._drain(resident)
            elif not self._limits.heed_free or self._scarcity.free is not None:
                del self._outdated[worker]
                self._start(spec, now, heir=True)
            elif self._scarcity.ought_to_look(self._books.version, now):
                self._scarcity.looks(self._books.version)
                self._orders.append(LookAtFree())

    def _successor(self, resident: Resident) -> ModelSpec | None:
        """What is to run in its place, unless it goes anyway, is right again or has an heir."""
        spec = self._catalog.models.get(resident.spec.name)
        if spec is None or resident.state is not State.READY or resident.spec.same_process(spec):
            return None
        heirs = (r for r in self._books.of_model(spec.name) if r.state is State.STARTING)
        return None if any(heirs) else spec

    def _may_be_beside(self, spec: ModelSpec) -> bool:
        """Whether there is room for a second worker, as far as it is known, and nobody wants it.

        What a group says of its members may mean that one of them fills the machine.
        """
        books, need = self._books, self._books.need(spec)
        if self._closing is not None or books.wanted or group_of(spec.name, self._limits):
            return False
        if missing(books.taken() + need, self._limits):
            return False
        free = self._scarcity.free
        if not self._limits.heed_free or free is None:
            return True
        coming = sum(books.need(r.spec).bytes for r in books.residents.values() if r.is_coming)
        return coming + need.bytes <= free
