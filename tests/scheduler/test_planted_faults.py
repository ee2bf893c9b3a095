"""A planted fault for each rule of sharing, policy and bookkeeping: each turns a test red.

The faults of the scheduler's own rules stand in test_properties.py, beside the search that finds
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from swapd.domain import events as ev
from swapd.domain.commands import Preload, RejectReason
from swapd.domain.models import Limits, ModelSpec
from swapd.scheduler import (
    admission,
    eviction,
    groups,
    handlers,
    placement,
    quarantine,
    scheduler,
    state,
    timers,
    turns,
)
from swapd.scheduler import queue as queues
from swapd.scheduler.eviction import POLICIES, EvictionPolicy, pressure_level
from swapd.scheduler.handlers import Desk, Facts
from swapd.scheduler.placement import MemoryWaiters
from swapd.scheduler.quarantine import Quarantine
from swapd.scheduler.scheduler import Placing, Scheduler, Succession
from swapd.scheduler.state import WorkerRecord, missing
from swapd.store.policy import DiskStore
from tests.scheduler import test_memory as memory
from tests.scheduler import test_properties as properties
from tests.scheduler import test_quarantine as lost
from tests.scheduler import test_rolling_replacement as succession
from tests.scheduler import test_rules as talks
from tests.scheduler import test_sharing as sharing
from tests.scheduler.histories import follow, histories, worlds
from tests.store import test_policy as files

Test = Callable[[], object]
Fault = tuple[str, Any, str, Any, Test]
"""What is wrong, where (object and name), what stands there instead, and the test that tells."""

level, ledger_class = queues.PriorityLevel, state.SchedulerState


def _grant_uncounted(self: queues.PriorityLevel, tenant: str, tokens: float, now: float) -> None:
    del self, tenant, tokens, now


def _oldest(self: queues.PriorityLevel, slots: int, now: float) -> queues.QueuedRequest:
    del slots, now
    return self.oldest()


def _policy(name: str, **changes: Any) -> dict[str, EvictionPolicy]:
    fields = {f: getattr(POLICIES[name], f) for f in EvictionPolicy.__slots__}
    return {**POLICIES, name: EvictionPolicy(**{**fields, **changes})}


def _nobody_else(*_: object) -> None:
    return None


def _first_come(books: Any, spec: Any, limits: Any, event: Any) -> Any:
    found = admission.too_many(books, spec, limits, event)
    return None if found is None else (found[0], None)


def _tenants_unbounded(books: Any, spec: Any, limits: Any, event: Any) -> Any:
    found = admission.too_many(books, spec, limits, event)
    return None if found is not None and found[0].reason is RejectReason.TENANT_FULL else found


def _admitted_before_the_transfer(self: DiskStore, model: str, size: int, *rest: Any) -> Any:
    decision = _decide(self, model, size, *rest)
    if decision.action.value == "load_from_store":
        self.arrived(model, 0.0, 0.0)
        self._coming[model] = size
    return decision


def _failures_count_as_served(self: Facts, event: ev.RequestFinished) -> None:
    _finished(self, ev.RequestFinished(event.now, event.request, True, event.tokens))


def _no_wish_for_priority(self: Facts, event: ev.RequestArrived) -> None:
    _arrived(self, replace(event, priority=0))


def _no_priority_of_models(self: Facts, event: ev.RequestArrived) -> None:
    spec = self._catalog.models[event.model]
    _arrived(self, replace(event, priority=event.priority - spec.serving.priority))


def _at_the_end(line: dict[int, Any], waiting: Any) -> None:
    line[waiting.request] = waiting


def _all_guilty(self: Quarantine, served: Any, reason: str) -> bool:
    for waiting in served:
        _worker_ended(self, [waiting], reason)
    return bool(served)


_worker_ended = Quarantine.worker_ended
_decide, _finished, _lasts = DiskStore.decide, Facts._finished, WorkerRecord.lasts
_arrived, _turn = Facts._arrived, turns._turn_ends
_plan, _place, _pressure = placement.plan, Scheduler._place, pressure_level


def _spares_nobody(policy: EvictionPolicy, short: Any, candidates: Any) -> Any:
    return tuple(c.key for c in candidates) or None


def _nobody_released(self: Scheduler, now: float) -> set[str]:
    _place(self, now)
    return set()


def _patient_plan(books: Any, catalog: Any, now: float) -> placement.PlacementPlan:
    made = _plan(books, catalog, now)
    made.holds_until = math.inf
    return made


def _turn_without_bound(books: Any, resident: Any, rival: Any, asked: Any, limits: Any) -> float:
    return _turn(books, resident, rival, asked, replace(limits, max_turn=1e9))


def _deaf_to_stalls(event: Any, limits: Any) -> Any:
    return _pressure(event, replace(limits, psi_threshold_percent=0.0))


def _all_of_them(self: Scheduler, wanted: list[Any], now: float) -> list[Any]:
    assert now >= 0
    assert self.catalog
    return wanted


def _no_members(*_: object) -> frozenset[str]:
    return frozenset()


def _brings_always(self: Scheduler, model: str) -> None:
    self._orders += [Preload(other) for other in {"a", "b"} - {model}]


def _always_critical(event: Any, limits: Any) -> Any:
    return _pressure(event, replace(limits, critical_percent=limits.threshold_percent))


def _never_critical(event: Any, limits: Any) -> Any:
    return _pressure(event, replace(limits, critical_percent=0.0))


def _on(policy: str, test: Callable[[str], None]) -> Test:
    return lambda: test(policy)


def _same_orders(limit: int = 2000) -> None:
    """The search of test_properties, without its printing and its memory."""
    from hypothesis import Phase, given, settings

    @settings(
        properties.QUICK,
        max_examples=limit,
        phases=[Phase.generate],
        database=None,
        derandomize=True,
    )
    @given(worlds, histories)
    def search(world: Any, history: Any) -> None:
        told = follow(world, history).history
        assert told == follow(world, history, properties.LooksAtAll).history

    search()


def _fits(self: Succession, spec: Any) -> bool:
    return not missing(self._books.taken() + self._books.need(spec), self._limits)


def _another(self: Succession, resident: WorkerRecord) -> Any:
    return self._catalog.models.get(resident.spec.name)


FAULTS: list[Fault] = [
    ("the oldest is next, whoever it is", level, "next", _oldest,
     sharing.test_tenants_take_turns_however_many_requests_one_of_them_has),
    ("what is served is not counted", level, "grant", _grant_uncounted,
     sharing.test_tenants_take_turns_however_many_requests_one_of_them_has),
    ("what is waited for does not count", queues, "WAITED_FOR", 0.0,
     sharing.test_who_asks_for_much_is_behind_those_who_ask_for_little),
    ("what is waited for counts without bound", queues, "AHEAD", math.inf,
     sharing.test_what_a_tenant_waits_for_counts_up_to_a_bound),
    ("a token makes a difference", queues, "SLACK", 0,
     sharing.test_tenants_that_differ_by_little_are_served_by_age),
    ("no token makes a difference", queues, "SLACK", 1e9,
     sharing.test_what_counts_is_tokens_and_not_requests),
    ("who asks for much is passed without end", queues, "PASSED", math.inf,
     sharing.test_who_waits_is_passed_for_a_while_and_no_longer),
    ("requests are counted, not tokens", level, "correct", _nobody_else,
     sharing.test_what_counts_is_tokens_and_not_requests),
    ("absence earns without bound", queues, "CREDIT", math.inf,
     sharing.test_absence_earns_no_more_than_the_credit),
    ("failures are paid for", Facts, "_finished", _failures_count_as_served,
     sharing.test_a_failed_request_costs_its_tenant_nothing),
    ("waiting does not make up for priority", queues, "STEP", 1e9,
     sharing.test_priority_goes_first_and_waiting_makes_up_for_it),
    ("priority counts for nothing", queues, "STEP", 0.0,
     sharing.test_priority_goes_first_and_waiting_makes_up_for_it),
    ("only the model's priority counts", Facts, "_arrived", _no_wish_for_priority,
     sharing.test_the_priorities_of_a_model_and_of_a_request_add_up),
    ("only the request's priority counts", Facts, "_arrived", _no_priority_of_models,
     sharing.test_the_priorities_of_a_model_and_of_a_request_add_up),
    ("priority has no end", queues, "MOST", 10**9, sharing.test_priorities_have_an_end),
    ("no bound for a tenant", admission, "too_many", _tenants_unbounded,
     sharing.test_a_tenant_has_a_bound_of_its_own),
    ("a full queue refuses whoever comes", admission, "too_many", _first_come,
     sharing.test_a_full_queue_costs_the_greediest_its_newest),
    ("keep_alive is not heard", WorkerRecord, "lasts",
     lambda self, timed: self.spec.ttl if timed and self.spec.ttl else math.inf,
     sharing.test_keep_alive_stands_instead_of_the_time_to_live),
    ("a negative keep_alive is a time", WorkerRecord, "lasts",
     lambda self, timed: self.keep_alive if self.keep_alive is not None else _lasts(self, timed),
     sharing.test_keep_alive_stands_instead_of_the_time_to_live),
    ("lru goes by use", placement, "POLICIES", _policy("lru", worth=POLICIES["lfu"].worth),
     _on("lru", lambda p: sharing.test_policies_differ_in_who_makes_room(p, "stop:2"))),
    ("lfu goes by time", placement, "POLICIES", _policy("lfu", worth=POLICIES["lru"].worth),
     _on("lfu", lambda p: sharing.test_policies_differ_in_who_makes_room(p, "stop:1"))),
    ("cost goes by time", placement, "POLICIES",
     _policy("cost", worth=POLICIES["lru"].worth, additive=False),
     sharing.test_cost_weighs_loading_likelihood_and_weight_by_the_byte),
    ("no-evict makes room", placement, "POLICIES", _policy("no-evict", evicts=True),
     _on("no-evict", sharing.test_policies_that_make_no_room_refuse_and_start_nothing)),
    ("lru heeds the time to live", WorkerRecord, "lasts", lambda self, _: _lasts(self, True),
     sharing.test_only_some_policies_heed_the_time_to_live),
    ("everybody makes room at once", eviction, "choose", _spares_nobody,
     talks.test_one_that_is_spared_when_another_alone_is_enough),
    ("a member is loaded beside another", placement, "must_part", lambda *_: False,
     sharing.test_a_busy_member_finishes_before_the_other_is_loaded),
    ("a persistent group goes like any other", groups, "must_not_coexist",
     lambda new, old, limits: limits.groups != () and new != old,
     lambda: sharing.test_groups_part_their_members_and_exclusive_ones_all_others("d", "c", [])),
    ("pinned members are waited for", admission, "_beside_pinned", lambda *_: "",
     sharing.test_beside_a_pinned_member_the_others_are_refused),
    ("a turn never ends", turns, "TURN", 1e9,
     talks.test_a_resident_model_is_served_for_a_turn_while_another_waits),
    ("who is put out comes back at once", ledger_class, "put_behind", _nobody_else,
     sharing.test_older_requests_for_one_model_keep_another_waiting_for_max_wait_at_most),
    ("nobody lingers", turns, "LINGER_MOST", 0.0,
     talks.test_a_model_that_falls_idle_gives_its_place_up_unless_its_clients_are_quick),
    ("a plan outlives the turns", placement, "plan", _patient_plan,
     talks.test_a_resident_model_is_served_for_a_turn_while_another_waits),
    ("a pass forgets whose time has come", timers.Timers, "due", lambda *_: [],
     talks.test_time_to_live_counts_from_the_end_of_the_last_request),
    ("those who need yield no more are left waiting", Scheduler, "_place",
     _nobody_released,
     talks.test_it_yields_no_longer_when_the_older_request_has_left),
    ("the plan does not see who has become younger", ledger_class, "_ahead",
     lambda *_: 0, _same_orders),
    ("a worker in use again is not noticed", ledger_class, "_in_use",
     lambda *_: True, _same_orders),
    ("its least time is not kept", turns, "keeps_place_until", turns._turn_ends,
     sharing.test_who_has_just_come_up_stays_for_its_least_time),
    ("those that belong together are not brought", handlers, "belonging", _no_members,
     sharing.test_those_that_belong_together_are_loaded_together),
    ("who was brought brings others", Desk, "_bring_others", _brings_always,
     sharing.test_those_that_belong_together_are_loaded_together),
    ("nobody looks whether memory is free", Placing, "_affordable", _all_of_them,
     memory.test_a_worker_is_started_when_its_memory_is_free_in_fact),
    ("what is coming up is forgotten", WorkerRecord, "is_coming", False,
     memory.test_what_is_on_its_way_up_or_out_is_waited_for),
    ("nobody goes for other programs", eviction, "choose", _nobody_else,
     memory.test_idle_workers_go_when_other_programs_hold_the_memory),
    ("memory is waited for without end", scheduler, "PATIENCE", math.inf,
     memory.test_memory_that_nobody_gives_back_is_waited_for_and_then_refused),
    ("memory is not waited for", scheduler, "PATIENCE", 0.0,
     memory.test_memory_that_nobody_gives_back_is_waited_for_and_then_refused),
    ("patience is used up once", MemoryWaiters, "only", _nobody_else,
     memory.test_patience_begins_anew_for_new_clients),
    ("one that runs alone is refused", Placing, "_runs_alone", lambda *_: False,
     memory.test_one_that_is_known_only_to_fill_the_budget_runs_alone_or_not_at_all),
    ("lost time does not press", scheduler, "pressure_of", _deaf_to_stalls,
     memory.test_lost_time_presses_like_full_memory),
    ("busy workers go like idle ones", scheduler, "pressure_of", _always_critical,
     talks.test_pressure_takes_one_idle_worker_a_sample_and_never_a_busy_one),
    ("busy workers never go", scheduler, "pressure_of", _never_critical,
     memory.test_busy_workers_go_above_the_critical_mark_alone_and_after_the_idle),
    ("nothing is learned", Desk, "_remember", _nobody_else,
     memory.test_what_was_learned_is_told_and_counts_from_the_start),
    ("what was learned is not used", ledger_class, "recall", _nobody_else,
     memory.test_what_was_learned_is_told_and_counts_from_the_start),
    ("an heir takes room that there is not", Succession, "_may_be_beside", lambda *_: True,
     lambda: succession.test_where_there_is_no_room_for_both_the_old_one_drains_first(
         Limits(max_resident=1))),
    ("an heir takes room that others wait for", Succession, "_may_be_beside", _fits,
     succession.test_others_that_wait_for_room_come_first),
    ("nobody is replaced in time", Succession, "_may_be_beside", lambda *_: False,
     succession.test_the_old_one_serves_until_the_new_one_is_ready),
    ("the old one stays beside the new", Facts, "_part_from_predecessor", _nobody_else,
     succession.test_the_old_one_serves_until_the_new_one_is_ready),
    ("an heir is given another one", Succession, "_successor", _another,
     succession.test_another_reload_starts_no_second_heir),
    ("a start takes as long as it likes", Scheduler, "_keep_deadline", _nobody_else,
     talks.test_a_worker_that_does_not_come_up_in_time_is_killed_and_that_is_the_reason),
    ("a failed start is tried again at once", handlers, "COOL_DOWN_MOST", 0.0,
     talks.test_failed_starts_cool_down_and_the_rest_grows),
    ("one accident rests a model", handlers, "ACCIDENTS", 0,
     talks.test_a_start_that_somebody_kills_is_tried_again_twice),
    ("what crashes is started again for ever", handlers, "ACCIDENTS", 10**9,
     talks.test_a_crash_after_coming_up_rests_the_model_from_the_third_time_on),
    ("queues have no bounds", admission, "too_many", _nobody_else,
     talks.test_queues_have_bounds_each_and_all_together),
    ("when to come back is a guess", admission, "expected_wait", lambda *_: 1.0,
     talks.test_the_time_to_come_back_is_measured),
    ("what is larger than the budget waits", admission, "cannot_start", _nobody_else,
     talks.test_more_than_the_budget_is_refused_with_the_numbers),
    ("the estimate is believed for ever", ledger_class, "measured", lambda *_: False,
     talks.test_what_was_measured_replaces_the_estimate),
    ("a worker's word on its slots is not heard", WorkerRecord, "slots",
     property(lambda self: self.spec.slots),
     talks.test_a_worker_that_tells_its_slots_is_believed),
    ("a turn is longer than max_wait", turns, "_turn_ends", _turn_without_bound,
     talks.test_a_turn_is_never_longer_than_max_wait),
    ("who closes takes new requests", Facts, "_closing_asked", _nobody_else,
     talks.test_closing_serves_what_has_a_worker_and_refuses_the_rest),
    ("a reload ends everybody", ModelSpec, "same_process", lambda *_: False,
     talks.test_a_reload_keeps_what_did_not_change),
    ("lowered limits are for those who come", Scheduler, "_shrink", _nobody_else,
     talks.test_lowered_limits_send_idle_workers_away),
    ("nothing is read ahead", Placing, "_read_ahead", _nobody_else,
     talks.test_the_next_models_files_are_read_while_it_waits_for_its_place),
    ("the first answer teaches nothing", Desk, "_sample_soon", _nobody_else,
     memory.test_the_first_answer_is_a_reason_to_look),
    ("other files are the same model", ledger_class, "forget", _nobody_else,
     memory.test_other_terms_change_nothing_that_was_learned),
    ("a look that comes late is a verdict", scheduler, "LATE", math.inf,
     lost.test_a_look_that_comes_late_starts_anew_because_swapd_itself_stood_still),
    ("a request has tries without end", quarantine, "TRIES", 10**9,
     lost.test_one_under_whom_three_workers_end_in_whatever_company_has_had_its_tries),
    ("an heir that fails is the end of it", Facts, "_part_from_predecessor", _nobody_else,
     succession.test_a_new_one_that_fails_beside_the_old_may_try_without_it),
    ("a file is in the cache before it is there", DiskStore, "decide",
     _admitted_before_the_transfer,
     files.test_a_file_is_there_only_when_its_transfer_has_succeeded),
    ("a failed transfer keeps its room", DiskStore, "failed", _nobody_else,
     files.test_a_file_is_there_only_when_its_transfer_has_succeeded),
    ("who comes back stands at the end", queues, "put", _at_the_end,
     lost.test_who_loses_a_worker_is_served_again_before_those_who_came_later),
    ("fingerprints are forgotten", Quarantine, "arrived", _nobody_else,
     lost.test_a_poisonous_one_is_found_and_those_beside_it_are_served),
    ("company is no excuse", Quarantine, "worker_ended", _all_guilty,
     lost.test_a_poisonous_one_is_found_and_those_beside_it_are_served),
    ("kills from outside are not told from other ends", Quarantine, "worker_killed", _nobody_else,
     lost.test_whoever_is_killed_from_outside_however_often_makes_nobody_a_suspect),
    ("an accident is remembered for ever", Quarantine, "finished", _nobody_else,
     lost.test_one_accident_makes_nobody_a_suspect),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0])
def test_a_planted_fault_turns_a_test_red(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    _, where, name, wrong, test = fault
    right = getattr(where, name)
    # A name that other modules have imported is wrong there as well.
    for module in (where, placement, admission, eviction, *_importers()):
        if getattr(module, name, None) is right:
            monkeypatch.setattr(module, name, wrong)
    with pytest.raises(Exception) as told:
        test()
    assert not isinstance(told.value, (TypeError, AttributeError, NameError)), told.value


def _importers() -> list[Any]:
    import sys

    return [m for n, m in sys.modules.items() if n.startswith("swapd.scheduler.")]
