"""The simulation is what it says, and the policies keep what docs/policies.md promises."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from swapd.domain.models import Limits
from swapd.simulation.belady import bounds
from swapd.simulation.machine import Hardware, SimulatedHost
from swapd.simulation.report import jain, measure, percentile, waits
from swapd.simulation.run import SimulationOptions, apart, greedy, main, run
from swapd.simulation.traces import (
    GIB,
    MADE,
    Trace,
    TraceError,
    TraceModel,
    TraceRequest,
    read,
    write,
)

ENDLESS = 1e9


def few(models: str, sizes: dict[str, int]) -> Trace:
    """Return a trace with a request a minute for each letter."""
    asks = tuple(TraceRequest(60.0 * i, m, 100, 10) for i, m in enumerate(models))
    return Trace("few", asks, {m: TraceModel(size * GIB) for m, size in sizes.items()})


def test_loading_waiting_and_serving_take_what_the_hardware_says() -> None:
    trace = few("aab", {"a": 4, "b": 4})
    limits = Limits(max_resident=1, interval=ENDLESS)
    outcome = SimulatedHost(trace.models, limits, Hardware(), 1).run(trace.asks)
    result = measure("few", "cost", outcome)
    assert (result.requests, result.swaps, result.refused) == (3, 2, 0)
    assert result.loading == pytest.approx(2 * 2.5)
    assert waits(outcome) == pytest.approx([2.5, 0.0, 2.5 + Hardware().stop_seconds])
    assert outcome.served[1].ended == pytest.approx(60 + 100 * 4 / 2000 + 10 * 4 / 150)
    assert [stay.model for stay in outcome.stays] == ["a", "b"]


def test_a_made_trace_is_the_same_for_the_same_seed_and_in_order() -> None:
    for make in MADE.values():
        trace = make(7, 6)
        assert trace == make(7, 6) != make(8, 6)
        times = [ask.time for ask in trace.asks]
        assert times == sorted(times)
        assert {ask.model for ask in trace.asks} <= trace.models.keys()


def _best(trace: Trace, budget: int) -> float:
    """The least that loading can cost, by trying every choice of what to keep."""
    least = float("inf")
    states: dict[frozenset[str], float] = {frozenset(): 0.0}
    for ask in trace.asks:
        after: dict[frozenset[str], float] = {}
        for held, cost in states.items():
            more = cost + (0.0 if ask.model in held else trace.models[ask.model].load)
            others = sorted(held - {ask.model})
            for n in range(len(others) + 1):
                for kept in itertools.combinations(others, n):
                    now = frozenset((*kept, ask.model))
                    if sum(trace.models[m].bytes for m in now) <= budget:
                        after[now] = min(after.get(now, least), more)
        states = after
    return min(states.values())


@pytest.mark.parametrize("models", ["abcabcabcd", "aabbccddabcd", "abacadaeabcde", "abcdeedcba"])
def test_the_best_that_can_be_had_lies_between_the_bounds(models: str) -> None:
    trace = few(models, {"a": 1, "b": 2, "c": 3, "d": 4, "e": 6})
    for budget in (6, 7, 9, 16):
        found = bounds(trace, budget * GIB)
        best = _best(trace, budget * GIB)
        assert found.floor <= best + 1e-6
        assert best <= found.belady + 1e-6
        assert found.floor >= 0.75 * best


def test_percentiles_and_jains_index() -> None:
    assert percentile([], 0.95) == 0
    assert [percentile(range(1, 101), s) for s in (0.5, 0.95, 0.99)] == [51, 96, 100]
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([1, 0, 0, 0]) == pytest.approx(0.25)


def test_cost_loads_less_than_lru() -> None:
    for name, most in (("zipf", 0.7), ("sessions", 0.7)):
        shares = []
        for seed in (1, 2, 3):
            options = SimulationOptions((MADE[name](seed, 24),), ("lru", "cost"))
            (compared,) = run(options)
            lru, cost = compared.results
            shares.append(cost.loading / lru.loading)
            assert cost.loading <= 1.5 * compared.bounds.belady
        assert sum(shares) / len(shares) <= most, shares


def test_cost_is_never_much_worse_than_lru() -> None:
    for name in MADE:
        (compared,) = run(SimulationOptions((MADE[name](4, 24),), ("lru", "cost")))
        lru, cost = compared.results
        assert cost.loading <= 1.05 * lru.loading, name


def test_two_clients_of_two_models_swap_seldom_and_none_waits_beyond_the_bound() -> None:
    taken = Limits(max_resident=1, max_turn=60.0, interval=ENDLESS)
    by_arrival = Limits(max_resident=1, max_turn=0.0, interval=ENDLESS)
    share = {}
    for limits in (taken, by_arrival):
        outcome = apart(limits, 1800)
        share[limits] = len(outcome.stays) / len(outcome.served)
        turn = limits.max_turn + 2 * Hardware().stop_seconds + TraceModel(4 * GIB).load + 10
        assert max(waits(outcome)) <= turn
    assert share[taken] <= 0.1 * share[by_arrival]


@pytest.mark.parametrize(("share", "slots"), [(0.6, 1), (0.75, 2)])
def test_a_greedy_tenant_slows_itself_alone(share: float, slots: int) -> None:
    limits = Limits(interval=ENDLESS, max_queued=0)
    p95 = {}
    for times in (0, 10):
        outcome = greedy(limits, 3, times, share, slots)
        others = [s for s in outcome.served if s.ask.tenant != "greedy"]
        assert not any(s.refused for s in others)
        waited = [s.granted - s.ask.time for s in others if s.granted is not None]
        p95[times] = percentile(waited, 0.95)
        served: dict[str, int] = {}
        for s in others:
            served[s.ask.tenant] = served.get(s.ask.tenant, 0) + s.ask.tokens
        assert jain(list(served.values())) >= 0.95
    assert p95[10] <= 1.5 * p95[0]


def test_a_trace_is_written_and_read_back(tmp_path: Path) -> None:
    trace = few("abc", {"a": 1, "b": 1, "c": 2})
    write(tmp_path / "few.csv", trace.asks)
    assert read(tmp_path / "few.csv", trace.models, TraceModel(GIB)) == trace


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("time,model\n1,a\n", "no column output_tokens, prompt_tokens"),
        (
            "time,model,prompt_tokens,output_tokens\nx,a,1,1\n",
            ":2: time and tokens must be numbers",
        ),
        ("time,model,prompt_tokens,output_tokens\n1,a,1\n", ":2: time and tokens must be numbers"),
        ("time,model,prompt_tokens,output_tokens\n1,,1,1\n", ":2: a model, a time and tokens"),
        ("time,model,prompt_tokens,output_tokens\nnan,a,1,1\n", ":2: a model, a time and tokens"),
    ],
)
def test_a_bad_trace_says_where(tmp_path: Path, text: str, fault: str) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(TraceError, match=fault):
        read(file, {}, TraceModel(GIB))


def test_the_command_prints_a_table_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--made", "zipf", "--hours", "2", "--policies", "lru,cost"]
    saved = tmp_path / "new" / "traces"
    assert main([*arguments, "--save", str(saved)]) == 0
    table = capsys.readouterr().out
    assert "zipf:" in table
    assert "(offline)" in table
    assert main(["--trace", str(saved / "zipf.csv"), "--policies", "no-evict", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["policy"] == "no-evict"
    assert line["requests"] > 0


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--made", "zip"], "no made trace 'zip'; there are zipf"),
        (["--policies", "fifo"], "no policy 'fifo'; there are cost"),
        (["--model", "a=0"], "numbers above 0"),
        (["--model", "a=x"], "not NAME=GIB"),
        (["--trace", "/nowhere/t.csv"], "No such file"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    assert fault in capsys.readouterr().err
