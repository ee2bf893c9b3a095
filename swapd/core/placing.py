"""Making room and starting: what the plan says, as far as the machine has the memory in fact."""

from __future__ import annotations

from swapd.core import eviction
from swapd.core.facts import COOL_DOWN_MOST, Facts
from swapd.core.lifecycle import State
from swapd.core.placement import candidate, leavable, plan
from swapd.core.refusals import no_room, not_free
from swapd.core.room import Room
from swapd.core.scarcity import PATIENCE, PAUSE
from swapd.domain.commands import LookAtFree, ReadAhead
from swapd.domain.models import ModelSpec


class Placing(Facts):
    """The part of the settle pass that gives wanted models their workers."""

    def _is_done(self, now: float) -> bool:
        """Whether nothing is left to be done of the plan, which would be the same if made anew,
        when no worker has changed."""
        made = self._plan
        return not (made.start or made.refused) and made.holds(self._books, now)

    def _place(self, now: float) -> set[str]:
        """Start what is wanted and fits, stop idle workers where room is short.

        Returns the models whose workers yielded and do no longer.
        """
        before, books = self._plan, self._books
        if not before.holds(books, now):
            self._plan = plan(books, self._catalog, now)
            books.horizon = self._plan.reached
        made = self._plan
        for worker, wanted in made.going.items():
            resident = books.residents[worker]
            if resident.idle:
                books.put_behind(resident.spec.name, wanted, now)
                self._stop(resident, f"makes room for {wanted}", now)
        for spec, short in made.refused:
            retry_after = max(1.0, min(self._agenda.soonest - now, COOL_DOWN_MOST))
            self._refuse_all(spec.name, no_room(spec, short, self._limits, retry_after))
        for spec in self._affordable(made.start, now):
            self._start(spec, now)
        self._read_ahead()
        if made is before:
            return set()
        released = before.going.keys() - made.going.keys()
        return {books.residents[w].spec.name for w in released if w in books.residents}

    def _read_ahead(self) -> None:
        """Have the next model's files read while those before it are in its place."""
        wanted = self._books.wanted
        coming = wanted[0][1] if wanted else ""
        if coming != self._ahead:
            self._ahead = coming
            if coming:
                self._orders.append(ReadAhead(self._catalog.models[coming]))

    def _affordable(self, wanted: list[ModelSpec], now: float) -> list[ModelSpec]:
        """Those of them, in turn, for which the memory is there; that is asked for first."""
        scarcity = self._scarcity
        if scarcity.since:
            scarcity.only({spec.name for spec in wanted})
        if not wanted or not self._limits.heed_free:
            return wanted
        if scarcity.free is None:
            if scarcity.ought_to_look(self._books.version, now):
                scarcity.looks(self._books.version)
                self._orders.append(LookAtFree())
            return []
        free, found = scarcity.free, list[ModelSpec]()
        for resident in self._books.residents.values():
            if resident.is_coming:
                free -= self._books.need(resident.spec).bytes
        for spec in wanted:
            need = self._books.need(spec).bytes
            if need > free and not self._runs_alone(spec, need):
                self._make_free(spec, need, max(free, 0), now)
                break
            scarcity.fits(spec.name)
            free -= need
            found.append(spec)
        return found

    def _runs_alone(self, spec: ModelSpec, need: int) -> bool:
        """Whether it is one of which it is only known that it has to be alone, and it will be."""
        others = any(r.spec.name != spec.name for r in self._books.residents.values())
        return not others and 0 < self._limits.budget_bytes <= need

    def _make_free(self, spec: ModelSpec, need: int, free: int, now: float) -> None:
        """It is short of memory that other programs hold: idle workers go, or it waits."""
        books, scarcity = self._books, self._scarcity
        settled = State.READY, State.DRAINING
        if any(r.state not in settled for r in books.residents.values()):
            return  # What comes up or goes will be heard of.
        idle = [
            candidate(books, r, now)
            for r in leavable(books)
            if r.idle and r.up_since + r.spec.min_stay <= now
        ]
        short = Room(0, need - free)
        victims = eviction.choose(self._policy, short, idle) if self._policy.makes_room else None
        if victims:
            for victim in victims:
                self._stop(books.residents[victim], f"makes room for {spec.name}", now)
        elif now >= scarcity.waits(spec.name, now) + PATIENCE:
            scarcity.fits(spec.name)
            self._refuse_all(spec.name, not_free(spec, need, free))
            if books.wanted:
                scarcity.looks(books.version)
                self._orders.append(LookAtFree())
        else:
            scarcity.look_at = now + PAUSE
