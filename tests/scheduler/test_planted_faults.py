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
    emitter,
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
from swapd.scheduler.emitter import Emitter
from swapd.scheduler.eviction import POLICIES, EvictionPolicy, pressure_level
from swapd.scheduler.quarantine import Quarantine
from swapd.scheduler.records import MemoryWaiters, PlacementPlan, WorkerRecord, missing
from swapd.scheduler.state import SchedulerState
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
"""Description of the fault, object and name to replace, the replacement, the failing test."""

level, state_class = queues.PriorityLevel, state.SchedulerState


def _grant_uncounted(self: queues.PriorityLevel, tenant: str, tokens: float, now: float) -> None:
    del self, tenant, tokens, now


def _oldest(self: queues.PriorityLevel, slots: int, now: float) -> queues.QueuedRequest:
    del slots, now
    return self.oldest()


def _policy(name: str, **changes: Any) -> dict[str, EvictionPolicy]:
    fields = {f: getattr(POLICIES[name], f) for f in EvictionPolicy.__slots__}
    return {**POLICIES, name: EvictionPolicy(**{**fields, **changes})}


def _none(*_: object) -> None:
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


def _failures_count_as_served(state: Any, event: ev.RequestFinished, emit: Emitter) -> None:
    _finished(state, ev.RequestFinished(event.now, event.request, True, event.tokens), emit)


def _no_priority_of_requests(state: Any, event: ev.RequestArrived, emit: Emitter) -> None:
    _arrived(state, replace(event, priority=0), emit)


def _no_priority_of_models(state: Any, event: ev.RequestArrived, emit: Emitter) -> None:
    spec = state.catalog.models[event.model]
    _arrived(state, replace(event, priority=event.priority - spec.serving.priority), emit)


def _at_the_end(line: dict[int, Any], waiting: Any) -> None:
    line[waiting.request] = waiting


def _all_guilty(self: Quarantine, served: Any, reason: str) -> bool:
    for waiting in served:
        _worker_ended(self, [waiting], reason)
    return bool(served)


_worker_ended = Quarantine.worker_crashed
_decide, _finished, _limit = DiskStore.decide, handlers.request_finished, WorkerRecord.idle_limit
_arrived, _turn = handlers.request_arrived, turns._slice_end
_plan, _place, _pressure = placement.make_plan, scheduler.place, pressure_level


def _spares_nobody(policy: EvictionPolicy, short: Any, candidates: Any) -> Any:
    return tuple(c.key for c in candidates) or None


def _none_released(state: Any, now: float, emit: Emitter) -> set[str]:
    _place(state, now, emit)
    return set()


def _patient_plan(state: Any, now: float) -> PlacementPlan:
    made = _plan(state, now)
    made.valid_until = math.inf
    return made


def _turn_without_bound(books: Any, resident: Any, rival: Any, asked: Any, limits: Any) -> float:
    return _turn(books, resident, rival, asked, replace(limits, max_turn=1e9))


def _deaf_to_stalls(event: Any, limits: Any) -> Any:
    return _pressure(event, replace(limits, psi_threshold_percent=0.0))


def _all_of_them(state: Any, wanted: list[Any], *_: object) -> list[Any]:
    assert state.catalog
    return wanted


def _no_members(*_: object) -> frozenset[str]:
    return frozenset()


def _preload_always(self: Emitter, model: str) -> None:
    self._commands += [Preload(other) for other in {"a", "b"} - {model}]


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
        expected = follow(world, history).history
        assert expected == follow(world, history, properties.LooksAtAll).history

    search()


def _fits(state: SchedulerState, spec: Any) -> bool:
    return not missing(state.taken() + state.need(spec), state.limits)


def _another(state: SchedulerState, worker: WorkerRecord) -> Any:
    return state.catalog.models.get(worker.spec.name)


FAULTS: list[Fault] = [
    ("the oldest is next, whoever it is", level, "next", _oldest,
     sharing.test_tenants_take_turns_however_many_requests_one_of_them_has),
    ("what is served is not counted", level, "grant", _grant_uncounted,
     sharing.test_tenants_take_turns_however_many_requests_one_of_them_has),
    ("what is waited for does not count", queues, "QUEUED_WEIGHT", 0.0,
     sharing.test_who_asks_for_much_is_behind_those_who_ask_for_little),
    ("what is waited for counts without bound", queues, "MAX_QUEUED_TOKENS", math.inf,
     sharing.test_what_a_tenant_waits_for_counts_up_to_a_bound),
    ("a token makes a difference", queues, "SLACK", 0,
     sharing.test_tenants_that_differ_by_little_are_served_by_age),
    ("no token makes a difference", queues, "SLACK", 1e9,
     sharing.test_what_counts_is_tokens_and_not_requests),
    ("who asks for much is passed without end", queues, "MAX_SKIPPED", math.inf,
     sharing.test_who_waits_is_passed_for_a_while_and_no_longer),
    ("requests are counted, not tokens", level, "correct", _none,
     sharing.test_what_counts_is_tokens_and_not_requests),
    ("absence earns without bound", queues, "CREDIT", math.inf,
     sharing.test_absence_earns_no_more_than_the_credit),
    ("failures are paid for", handlers, "request_finished", _failures_count_as_served,
     sharing.test_a_failed_request_costs_its_tenant_nothing),
    ("waiting does not make up for priority", queues, "STEP", 1e9,
     sharing.test_priority_goes_first_and_waiting_makes_up_for_it),
    ("priority counts for nothing", queues, "STEP", 0.0,
     sharing.test_priority_goes_first_and_waiting_makes_up_for_it),
    ("only the model's priority counts", handlers, "request_arrived", _no_priority_of_requests,
     sharing.test_the_priorities_of_a_model_and_of_a_request_add_up),
    ("only the request's priority counts", handlers, "request_arrived", _no_priority_of_models,
     sharing.test_the_priorities_of_a_model_and_of_a_request_add_up),
    ("priority has no end", queues, "MAX_PRIORITY", 10**9, sharing.test_priorities_have_an_end),
    ("no bound for a tenant", admission, "too_many", _tenants_unbounded,
     sharing.test_a_tenant_has_a_bound_of_its_own),
    ("a full queue refuses whoever comes", admission, "too_many", _first_come,
     sharing.test_a_full_queue_costs_the_greediest_its_newest),
    ("keep_alive is not heard", WorkerRecord, "idle_limit",
     lambda self, timed: self.spec.serving.ttl if timed and self.spec.serving.ttl else math.inf,
     sharing.test_keep_alive_stands_instead_of_the_time_to_live),
    ("a negative keep_alive is a time", WorkerRecord, "idle_limit",
     lambda self, timed: self.keep_alive if self.keep_alive is not None else _limit(self, timed),
     sharing.test_keep_alive_stands_instead_of_the_time_to_live),
    ("lru goes by use", placement, "POLICIES", _policy("lru", value=POLICIES["lfu"].value),
     _on("lru", lambda p: sharing.test_policies_differ_in_who_makes_room(p, "stop:2"))),
    ("lfu goes by time", placement, "POLICIES", _policy("lfu", value=POLICIES["lru"].value),
     _on("lfu", lambda p: sharing.test_policies_differ_in_who_makes_room(p, "stop:1"))),
    ("cost goes by time", placement, "POLICIES",
     _policy("cost", value=POLICIES["lru"].value, additive=False),
     sharing.test_cost_weighs_loading_likelihood_and_weight_by_the_byte),
    ("no-evict makes room", placement, "POLICIES", _policy("no-evict", evicts=True),
     _on("no-evict", sharing.test_policies_that_make_no_room_refuse_and_start_nothing)),
    ("lru heeds the time to live", WorkerRecord, "idle_limit", lambda self, _: _limit(self, True),
     sharing.test_only_some_policies_heed_the_time_to_live),
    ("everybody makes room at once", eviction, "choose", _spares_nobody,
     talks.test_one_that_is_spared_when_another_alone_is_enough),
    ("a member is loaded beside another", placement, "must_not_coexist", lambda *_: False,
     sharing.test_a_busy_member_finishes_before_the_other_is_loaded),
    ("a persistent group goes like any other", groups, "must_not_coexist",
     lambda new, old, limits: limits.groups != () and new != old,
     lambda: sharing.test_groups_part_their_members_and_exclusive_ones_all_others("d", "c", [])),
    ("pinned members are waited for", admission, "_beside_pinned", lambda *_: "",
     sharing.test_beside_a_pinned_member_the_others_are_refused),
    ("a turn never ends", turns, "TURN", 1e9,
     talks.test_a_resident_model_is_served_for_a_turn_while_another_waits),
    ("who is put out comes back at once", state_class, "defer", _none,
     sharing.test_older_requests_for_one_model_keep_another_waiting_for_max_wait_at_most),
    ("nobody lingers", turns, "MAX_LINGER", 0.0,
     talks.test_a_model_that_falls_idle_gives_its_place_up_unless_its_clients_are_quick),
    ("a plan outlives the turns", placement, "make_plan", _patient_plan,
     talks.test_a_resident_model_is_served_for_a_turn_while_another_waits),
    ("a pass forgets whose time has come", timers.Timers, "due", lambda *_: [],
     talks.test_time_to_live_counts_from_the_end_of_the_last_request),
    ("those who need yield no more are left waiting", scheduler, "place",
     _none_released,
     talks.test_it_yields_no_longer_when_the_older_request_has_left),
    ("the plan does not see who has become younger", state_class, "_count_before",
     lambda *_: 0, _same_orders),
    ("a worker in use again is not noticed", state_class, "_in_use",
     lambda *_: True, _same_orders),
    ("its least time is not kept", turns, "keeps_place_until", turns._slice_end,
     sharing.test_who_has_just_come_up_stays_for_its_least_time),
    ("those that belong together are not brought", emitter, "belonging", _no_members,
     sharing.test_those_that_belong_together_are_loaded_together),
    ("who was brought brings others", Emitter, "_preload_others", _preload_always,
     sharing.test_those_that_belong_together_are_loaded_together),
    ("nobody looks whether memory is free", scheduler, "affordable", _all_of_them,
     memory.test_a_worker_is_started_when_its_memory_is_free_in_fact),
    ("what is coming up is forgotten", WorkerRecord, "is_loading", False,
     memory.test_what_is_on_its_way_up_or_out_is_waited_for),
    ("nobody goes for other programs", eviction, "choose", _none,
     memory.test_idle_workers_go_when_other_programs_hold_the_memory),
    ("memory is waited for without end", scheduler, "FREE_MEMORY_TIMEOUT", math.inf,
     memory.test_memory_that_nobody_gives_back_is_waited_for_and_then_refused),
    ("memory is not waited for", scheduler, "FREE_MEMORY_TIMEOUT", 0.0,
     memory.test_memory_that_nobody_gives_back_is_waited_for_and_then_refused),
    ("patience is used up once", MemoryWaiters, "retain", _none,
     memory.test_patience_begins_anew_for_new_clients),
    ("one that runs alone is refused", scheduler, "runs_alone", lambda *_: False,
     memory.test_one_that_is_known_only_to_fill_the_budget_runs_alone_or_not_at_all),
    ("lost time does not press", handlers, "pressure_level", _deaf_to_stalls,
     memory.test_lost_time_presses_like_full_memory),
    ("busy workers go like idle ones", handlers, "pressure_level", _always_critical,
     talks.test_pressure_takes_one_idle_worker_a_sample_and_never_a_busy_one),
    ("busy workers never go", handlers, "pressure_level", _never_critical,
     memory.test_busy_workers_go_above_the_critical_mark_alone_and_after_the_idle),
    ("nothing is learned", Emitter, "save_profile", _none,
     memory.test_what_was_learned_is_told_and_counts_from_the_start),
    ("what was learned is not used", state_class, "restore_profile", _none,
     memory.test_what_was_learned_is_told_and_counts_from_the_start),
    ("an heir takes room that there is not", scheduler, "may_start_beside", lambda *_: True,
     lambda: succession.test_where_there_is_no_room_for_both_the_old_one_drains_first(
         Limits(max_resident=1))),
    ("an heir takes room that others wait for", scheduler, "may_start_beside", _fits,
     succession.test_others_that_wait_for_room_come_first),
    ("nobody is replaced in time", scheduler, "may_start_beside", lambda *_: False,
     succession.test_the_old_one_serves_until_the_new_one_is_ready),
    ("the old one stays beside the new", handlers, "drain_predecessor", _none,
     succession.test_the_old_one_serves_until_the_new_one_is_ready),
    ("an heir is given another one", scheduler, "replacement_spec", _another,
     succession.test_another_reload_starts_no_second_heir),
    ("a start takes as long as it likes", scheduler, "enforce_deadline", _none,
     talks.test_a_worker_that_does_not_come_up_in_time_is_killed_and_that_is_the_reason),
    ("a failed start is tried again at once", handlers, "MAX_BACKOFF", 0.0,
     talks.test_failed_starts_cool_down_and_the_rest_grows),
    ("one accident rests a model", handlers, "MAX_CRASHES", 0,
     talks.test_a_start_that_somebody_kills_is_tried_again_twice),
    ("what crashes is started again for ever", handlers, "MAX_CRASHES", 10**9,
     talks.test_a_crash_after_coming_up_rests_the_model_from_the_third_time_on),
    ("queues have no bounds", admission, "too_many", _none,
     talks.test_queues_have_bounds_each_and_all_together),
    ("when to come back is a guess", admission, "expected_wait", lambda *_: 1.0,
     talks.test_the_time_to_come_back_is_measured),
    ("what is larger than the budget waits", admission, "cannot_start", _none,
     talks.test_more_than_the_budget_is_refused_with_the_numbers),
    ("the estimate is believed for ever", state_class, "record_memory", lambda *_: False,
     talks.test_what_was_measured_replaces_the_estimate),
    ("a worker's word on its slots is not heard", WorkerRecord, "slots",
     property(lambda self: self.spec.serving.slots),
     talks.test_a_worker_that_tells_its_slots_is_believed),
    ("a turn is longer than max_wait", turns, "_slice_end", _turn_without_bound,
     talks.test_a_turn_is_never_longer_than_max_wait),
    ("who closes takes new requests", handlers, "shutdown_requested", _none,
     talks.test_closing_serves_what_has_a_worker_and_refuses_the_rest),
    ("a reload ends everybody", ModelSpec, "same_process", lambda *_: False,
     talks.test_a_reload_keeps_what_did_not_change),
    ("lowered limits are for those who come", scheduler, "evict_over_limits", _none,
     talks.test_lowered_limits_send_idle_workers_away),
    ("nothing is read ahead", Emitter, "prefetch", _none,
     talks.test_the_next_models_files_are_read_while_it_waits_for_its_place),
    ("the first answer teaches nothing", Emitter, "sample_memory", _none,
     memory.test_the_first_answer_is_a_reason_to_look),
    ("other files are the same model", state_class, "forget", _none,
     memory.test_other_terms_change_nothing_that_was_learned),
    ("a look that comes late is a verdict", scheduler, "LATE", math.inf,
     lost.test_a_look_that_comes_late_starts_anew_because_swapd_itself_stood_still),
    ("a request has tries without end", quarantine, "MAX_LOSSES", 10**9,
     lost.test_one_under_whom_three_workers_end_in_whatever_company_has_had_its_tries),
    ("an heir that fails is the end of it", handlers, "drain_predecessor", _none,
     succession.test_a_new_one_that_fails_beside_the_old_may_try_without_it),
    ("a file is in the cache before it is there", DiskStore, "decide",
     _admitted_before_the_transfer,
     files.test_a_file_is_there_only_when_its_transfer_has_succeeded),
    ("a failed transfer keeps its room", DiskStore, "failed", _none,
     files.test_a_file_is_there_only_when_its_transfer_has_succeeded),
    ("who comes back stands at the end", queues, "insert", _at_the_end,
     lost.test_who_loses_a_worker_is_served_again_before_those_who_came_later),
    ("fingerprints are forgotten", Quarantine, "check", _none,
     lost.test_a_poisonous_one_is_found_and_those_beside_it_are_served),
    ("company is no excuse", Quarantine, "worker_crashed", _all_guilty,
     lost.test_a_poisonous_one_is_found_and_those_beside_it_are_served),
    ("kills from outside are not told from other ends", Quarantine, "worker_killed", _none,
     lost.test_whoever_is_killed_from_outside_however_often_makes_nobody_a_suspect),
    ("an accident is remembered for ever", Quarantine, "finished", _none,
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
    for event, handler in list(handlers.HANDLERS.items()):
        if handler is right:
            monkeypatch.setitem(handlers.HANDLERS, event, wrong)
    with pytest.raises(Exception) as raised:
        test()
    assert not isinstance(raised.value, (TypeError, AttributeError, NameError)), raised.value


def _importers() -> list[Any]:
    import sys

    return [m for n, m in sys.modules.items() if n.startswith("swapd.scheduler.")]
