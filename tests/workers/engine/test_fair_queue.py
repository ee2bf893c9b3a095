"""Order of the queue: fair between tenants, by age within one, without starvation."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from workers.engine.fair_queue import MAX_COUNTERS, MAX_SKIPS, TOKEN_COST, FairQueue


@dataclass(eq=False)
class Request:
    """A request in numbers."""

    number: int
    tenant: str
    pending: int = 1
    answer: int = 1
    started: float = 0.0
    skipped: int = 0

    @property
    def cost(self) -> int:
        """Cost of the complete answer."""
        return self.pending + TOKEN_COST * self.answer


def serve(queue: FairQueue[Request]) -> Request:
    """Admit the next request and account for its tokens."""
    request = next(queue.in_order())
    queue.admit(request, [])
    queue.account(request.tenant, prefill=request.pending, generated=request.answer)
    return request


REQUESTS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 500), st.integers(1, 200)), max_size=60
)


@given(REQUESTS)
def test_every_request_is_served_once_and_each_tenant_in_order(
    requests: list[tuple[str, int, int]],
) -> None:
    queue: FairQueue[Request] = FairQueue()
    for number, (tenant, prompt, answer) in enumerate(requests):
        queue.add(Request(number, tenant, prompt, answer))
    assert len(queue) == len([*queue]) == len([*queue.in_order()]) == len(requests)
    served = [serve(queue) for _ in requests]
    assert len(queue) == 0
    for tenant in "abc":
        mine = [request.number for request in served if request.tenant == tenant]
        assert mine == sorted(mine)
    assert sorted(request.number for request in served) == [*range(len(requests))]


@given(REQUESTS)
def test_no_waiting_tenant_is_behind_by_more_than_one_request(
    requests: list[tuple[str, int, int]],
) -> None:
    queue: FairQueue[Request] = FairQueue()
    for number, (tenant, prompt, answer) in enumerate(requests):
        queue.add(Request(number, tenant, prompt, answer))
    spent = dict.fromkeys("abc", 0)
    largest = max((prompt + TOKEN_COST * answer for _, prompt, answer in requests), default=0)
    while len(queue):
        before = {request.tenant for request in queue}
        served = serve(queue)
        spent[served.tenant] += served.cost
        assert all(spent[served.tenant] - spent[other] <= largest for other in before)


def test_a_flood_does_not_starve_other_tenants() -> None:
    queue: FairQueue[Request] = FairQueue()
    for number in range(100):
        queue.add(Request(number, "flood", 100, 100))
    queue.add(Request(100, "small", 10, 10))
    assert "small" in [serve(queue).tenant for _ in range(2)]


def test_an_idle_tenant_saves_nothing_up_and_keeps_its_debt() -> None:
    queue: FairQueue[Request] = FairQueue()
    for number in range(50):
        queue.add(Request(number, "busy", 100, 0))
    for _ in range(20):
        serve(queue)
    for number in range(50, 100):
        queue.add(Request(number, "late", 100, 0))
    tenants = [serve(queue).tenant for _ in range(20)]
    assert 9 <= tenants.count("late") <= 11
    queue.account("greedy", prefill=100_000)
    queue.add(Request(100, "greedy"))
    assert [*queue.in_order()][-1].tenant == "greedy"


def test_a_preempted_request_goes_first() -> None:
    queue: FairQueue[Request] = FairQueue()
    queue.add(Request(1, "a"))
    queue.add(Request(7, "b", started=1.0))
    queue.add(Request(5, "b", started=1.0))
    assert [request.number for request in queue.in_order()] == [5, 7, 1]


def test_a_removed_request_is_gone_and_a_skipped_one_is_counted() -> None:
    queue: FairQueue[Request] = FairQueue()
    large, small = Request(1, "a"), Request(2, "a")
    queue.add(large)
    queue.add(small)
    queue.admit(small, [large])
    queue.remove(small)
    assert (large.skipped, len(queue), [*queue]) == (1, 1, [large])
    assert MAX_SKIPS > 1


def test_counters_of_past_tenants_are_dropped() -> None:
    queue: FairQueue[Request] = FairQueue()
    queue.add(Request(0, "stays", 1))
    queue.account("stays", prefill=10**9)
    for number in range(1, 3000):
        queue.add(Request(number, f"tenant {number}", 1, 0))
        serve(queue)
    assert len(queue._spent) <= MAX_COUNTERS + 1
    queue.add(Request(3000, "new"))
    assert [request.tenant for request in queue.in_order()] == ["new", "stays"], "a debt remains"
