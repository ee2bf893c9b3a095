"""The prefix cache, against a model of its memory that holds every token."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.engine.prefix_cache import GROWTH, Adapters, HeldCells, PrefixCache, common_prefix

CAPACITY, IDS, SLOTS = 400, 6, 3


@dataclass(eq=False)
class Request:
    """An active sequence."""

    tokens: list[int]
    adapters: Adapters = ()
    reuses: bool = True
    pending_replay: int = 0
    seq_id: int = -1
    cached: int = 0

    @property
    def pending(self) -> int:
        """Pending tokens."""
        return len(self.tokens) - self.cached


@dataclass
class ModelMemory:
    """A memory whose cells are the tokens themselves; cells are shared by identity."""

    can_truncate: bool = True
    rows: dict[int, list[list[int]]] = field(default_factory=dict)

    def share(self, source: int, target: int, length: int) -> None:
        """As KvMemory."""
        assert self.can_truncate
        assert not self.rows.get(target)
        self.rows[target] = self.rows[source][:length]

    def cut(self, seq_id: int, length: int) -> bool:
        """As KvMemory."""
        if self.can_truncate:
            del self.rows[seq_id][length:]
        return self.can_truncate

    def forget(self, seq_id: int) -> None:
        """As KvMemory."""
        self.rows[seq_id] = []

    def decode(self, request: Request, count: int) -> None:
        """Write tokens of a sequence, as a step does."""
        row = self.rows.setdefault(request.seq_id, [])
        assert len(row) == request.cached
        row += [[token] for token in request.tokens[request.cached : request.cached + count]]

    @property
    def used(self) -> int:
        """Cells in use."""
        return len({id(cell) for row in self.rows.values() for cell in row})

    def tokens(self, seq_id: int) -> list[int]:
        """Return the tokens of a sequence in the cache."""
        return [cell[0] for cell in self.rows.get(seq_id, [])]


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)), st.integers(0, 20))
def test_the_common_prefix(one: list[int], other: list[int], limit: int) -> None:
    limit = min(limit, len(one), len(other))
    naive = next((n for n in range(limit) if one[n] != other[n]), limit)
    assert common_prefix(one, other, limit) == naive


class CacheMachine(RuleBasedStateMachine):
    """Requests that arrive, grow, end and are preempted in any order."""

    can_truncate: bool = True

    def __init__(self) -> None:
        super().__init__()
        self.memory = ModelMemory(self.can_truncate)
        ids = IDS if self.can_truncate else SLOTS
        self.cache = PrefixCache(self.memory, CAPACITY, ids)
        self.running: list[Request] = []
        self.past: list[list[int]] = [[]]

    @property
    def pending(self) -> int:
        """Pending tokens of the running requests."""
        return sum(request.pending for request in self.running)

    @precondition(lambda self: len(self.running) < SLOTS)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=120))
    def arrive(self, data: st.DataObject, more: list[int]) -> None:
        """Add a request that continues an earlier one, or not."""
        before = data.draw(st.sampled_from(self.past))
        start = before[: data.draw(st.integers(0, len(before)))]
        tokens = (start + more)[: CAPACITY - 40]
        adapters = data.draw(st.sampled_from([(), (("alice", 1.0),)]))
        request = Request(tokens, adapters, data.draw(st.integers(0, 4)) > 0)
        if not self.cache.allocate(request, self.running, self.pending):
            assert self.running, "a request alone is always admitted"
            active_cells = self.cache.cells.used_by(other.seq_id for other in self.running)
            capacity = CAPACITY - self.pending - GROWTH * (len(self.running) + 1)
            assert active_cells + len(tokens) > capacity, "it waits for cells of cached sequences"
            return
        assert request.cached < len(tokens)
        assert self.memory.tokens(request.seq_id) == tokens[: request.cached]
        assert not request.cached or request.reuses
        self.running.append(request)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Decode a part of the pending tokens, and generate a token where none is pending."""
        while not self.cache.ensure_capacity(self.pending):
            assert not self.cache.entries, "preempted before all were evicted"
            self.leave(self.running[-1], store=False)
        for request in self.running:
            count = data.draw(st.integers(0, request.pending))
            self.memory.decode(request, count)
            self.cache.extend(request, count)
            if request.pending == 0:
                request.tokens.append(data.draw(st.integers(0, 1)))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), store=st.booleans())
    def end(self, data: st.DataObject, store: bool) -> None:
        """End a request."""
        self.leave(data.draw(st.sampled_from(self.running)), store=store)

    def leave(self, request: Request, *, store: bool) -> None:
        """Release a request, as the batch scheduler does."""
        self.running.remove(request)
        self.past.append(request.tokens)
        if store and request.cached:
            self.cache.store(request, 0)
        else:
            self.cache.free(request)

    @precondition(lambda self: self.running and self.can_truncate)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        """Remove rejected draft tokens."""
        request = data.draw(st.sampled_from(self.running))
        self.cache.trim(request, data.draw(st.integers(0, request.cached)))

    @invariant()
    def counts_agree_with_memory(self) -> None:
        """Compare the counts of cells with the memory."""
        assert self.cache.cells.used == self.memory.used <= CAPACITY
        held: list[HeldCells] = []
        held.extend(self.running)
        held.extend(self.cache.entries)
        assert len({one.seq_id for one in held}) == len(held)
        for one in held:
            assert self.memory.tokens(one.seq_id) == one.tokens[: one.cached]
            assert self.cache.cells.length(one.seq_id) == one.cached


class WholeMachine(CacheMachine):
    """The same with a memory that can't be truncated."""

    can_truncate: bool = False


TestWithCuts = CacheMachine.TestCase
TestWithoutCuts = WholeMachine.TestCase


def filled(cache: PrefixCache, memory: ModelMemory, tokens: list[int], *others: Request) -> Request:
    """Return a running sequence that has decoded all but its last token."""
    request = Request(tokens)
    assert cache.allocate(request, others, 0)
    count = request.pending - 1
    memory.decode(request, count)
    cache.extend(request, count)
    return request


def test_a_running_sequence_is_shared_and_its_cells_are_counted_once() -> None:
    memory = ModelMemory()
    cache = PrefixCache(memory, 1000, 4)
    first = filled(cache, memory, [1] * 300)
    second = Request([1] * 300 + [2] * 50)
    assert cache.allocate(second, [first], 1)
    assert (second.cached, cache.cells.used) == (299, 299)


def test_a_continuation_takes_a_cached_sequence_over_and_a_branch_shares_it() -> None:
    memory = ModelMemory()
    cache = PrefixCache(memory, 1000, 4)
    cache.store(filled(cache, memory, [1] * 100), 0)
    seq_id = cache.entries[0].seq_id
    branch = Request([1] * 50 + [2] * 50)
    assert cache.allocate(branch, [], 0)
    assert (branch.cached, len(cache.entries), cache.cells.used) == (50, 1, 99)
    continuation = Request([1] * 120)
    assert cache.allocate(continuation, [branch], 50)
    assert (continuation.cached, continuation.seq_id, cache.entries) == (99, seq_id, [])


def test_the_least_recently_used_is_evicted_first() -> None:
    memory = ModelMemory()
    cache = PrefixCache(memory, 1000, 3)
    for number in range(3):
        cache.store(filled(cache, memory, [number] * 40), 0)
    again = Request([0] * 20 + [7] * 20)
    assert cache.allocate(again, [], 0), "an id is needed: the first is in use"
    assert [entry.tokens[0] for entry in cache.entries] == [2, 0]


def test_a_prefix_of_another_cached_sequence_is_evicted() -> None:
    memory = ModelMemory()
    cache = PrefixCache(memory, 1000, 4)
    first, second = filled(cache, memory, [1] * 50), Request([1] * 90)
    assert cache.allocate(second, [first], 1)
    memory.decode(second, 40)
    cache.extend(second, 40)
    cache.store(first, 0)
    cache.store(second, 1)
    assert [entry.cached for entry in cache.entries] == [89]
    assert cache.cells.used == 89
