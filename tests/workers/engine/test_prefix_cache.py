"""The books of the cache, against a memory that remembers every token."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.engine.prefix_cache import GROWTH, Adapters, HeldCells, PrefixCache, common_prefix

CAPACITY, IDS, SLOTS = 400, 6, 3


@dataclass(eq=False)
class Wish:
    """A sequence."""

    tokens: list[int]
    adapters: Adapters = ()
    reuses: bool = True
    unplayed: int = 0
    seq_id: int = -1
    cached: int = 0

    @property
    def pending(self) -> int:
        """Tokens to go."""
        return len(self.tokens) - self.cached


@dataclass
class Remembering:
    """A memory whose cells are the tokens themselves; cells are shared by identity."""

    cuts: bool = True
    rows: dict[int, list[list[int]]] = field(default_factory=dict)

    def share(self, source: int, target: int, length: int) -> None:
        """As Memory promises."""
        assert self.cuts
        assert not self.rows.get(target)
        self.rows[target] = self.rows[source][:length]

    def cut(self, seq_id: int, length: int) -> bool:
        """As Memory promises."""
        if self.cuts:
            del self.rows[seq_id][length:]
        return self.cuts

    def forget(self, seq_id: int) -> None:
        """As Memory promises."""
        self.rows[seq_id] = []

    def decode(self, wish: Wish, count: int) -> None:
        """What a step does."""
        row = self.rows.setdefault(wish.seq_id, [])
        assert len(row) == wish.cached
        row += [[token] for token in wish.tokens[wish.cached : wish.cached + count]]

    @property
    def used(self) -> int:
        """Cells that are somebody's."""
        return len({id(cell) for row in self.rows.values() for cell in row})

    def tokens(self, seq_id: int) -> list[int]:
        """What a sequence has in the cache."""
        return [cell[0] for cell in self.rows.get(seq_id, [])]


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)), st.integers(0, 20))
def test_the_common_prefix(one: list[int], other: list[int], limit: int) -> None:
    limit = min(limit, len(one), len(other))
    naive = next((n for n in range(limit) if one[n] != other[n]), limit)
    assert common_prefix(one, other, limit) == naive


class CacheMachine(RuleBasedStateMachine):
    """Requests come, grow, end and are sent away in any order."""

    cuts = True

    def __init__(self) -> None:
        super().__init__()
        self.memory = Remembering(self.cuts)
        ids = IDS if self.cuts else SLOTS
        self.cache = PrefixCache(self.memory, CAPACITY, ids)
        self.running: list[Wish] = []
        self.past: list[list[int]] = [[]]

    @property
    def growing(self) -> int:
        """What the running have pending."""
        return sum(wish.pending for wish in self.running)

    @precondition(lambda self: len(self.running) < SLOTS)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=120))
    def arrive(self, data: st.DataObject, more: list[int]) -> None:
        """A request that goes on from an earlier one, or not."""
        before = data.draw(st.sampled_from(self.past))
        start = before[: data.draw(st.integers(0, len(before)))]
        tokens = (start + more)[: CAPACITY - 40]
        adapters = data.draw(st.sampled_from([(), (("alice", 1.0),)]))
        wish = Wish(tokens, adapters, data.draw(st.integers(0, 4)) > 0)
        if not self.cache.claim(wish, self.running, self.growing):
            assert self.running, "a lone one always comes in"
            taken = self.cache.cells.used_by(other.seq_id for other in self.running)
            room = CAPACITY - self.growing - GROWTH * (len(self.running) + 1)
            assert taken + len(tokens) > room, "it waits behind what is only kept"
            return
        assert wish.cached < len(tokens)
        assert self.memory.tokens(wish.seq_id) == tokens[: wish.cached]
        assert not wish.cached or wish.reuses
        self.running.append(wish)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Everybody decodes a part of what is pending, and generates when nothing is."""
        while not self.cache.make_room(self.growing):
            assert not self.cache.kept, "somebody was sent back before what is only kept"
            self.leave(self.running[-1], keep=False)
        for wish in self.running:
            count = data.draw(st.integers(0, wish.pending))
            self.memory.decode(wish, count)
            self.cache.extend(wish, count)
            if wish.pending == 0:
                wish.tokens.append(data.draw(st.integers(0, 1)))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), keep=st.booleans())
    def end(self, data: st.DataObject, keep: bool) -> None:
        """One comes to its end."""
        self.leave(data.draw(st.sampled_from(self.running)), keep=keep)

    def leave(self, wish: Wish, *, keep: bool) -> None:
        """As the lane does."""
        self.running.remove(wish)
        self.past.append(wish.tokens)
        if keep and wish.cached:
            self.cache.keep(wish, 0)
        else:
            self.cache.drop(wish)

    @precondition(lambda self: self.running and self.cuts)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        """Tokens that were guessed wrong are taken off."""
        wish = data.draw(st.sampled_from(self.running))
        self.cache.trim(wish, data.draw(st.integers(0, wish.cached)))

    @invariant()
    def the_books_are_right(self) -> None:
        """Every cell is counted once, and everybody has what the books say."""
        assert self.cache.cells.used == self.memory.used <= CAPACITY
        held: list[HeldCells] = []
        held.extend(self.running)
        held.extend(self.cache.kept)
        assert len({one.seq_id for one in held}) == len(held)
        for one in held:
            assert self.memory.tokens(one.seq_id) == one.tokens[: one.cached]
            assert self.cache.cells.length(one.seq_id) == one.cached


class WholeMachine(CacheMachine):
    """The same with a memory that can't be cut."""

    cuts = False


TestWithCuts = CacheMachine.TestCase
TestWithoutCuts = WholeMachine.TestCase


def filled(cache: PrefixCache, memory: Remembering, tokens: list[int], *others: Wish) -> Wish:
    """A running sequence that has decoded all but its last token."""
    wish = Wish(tokens)
    assert cache.claim(wish, others, 0)
    count = wish.pending - 1
    memory.decode(wish, count)
    cache.extend(wish, count)
    return wish


def test_a_running_one_is_shared_and_its_cells_are_counted_once() -> None:
    memory = Remembering()
    cache = PrefixCache(memory, 1000, 4)
    first = filled(cache, memory, [1] * 300)
    second = Wish([1] * 300 + [2] * 50)
    assert cache.claim(second, [first], 1)
    assert (second.cached, cache.cells.used) == (299, 299)


def test_a_continuation_takes_the_kept_one_over_and_a_branch_shares_it() -> None:
    memory = Remembering()
    cache = PrefixCache(memory, 1000, 4)
    cache.keep(filled(cache, memory, [1] * 100), 0)
    seq_id = cache.kept[0].seq_id
    branch = Wish([1] * 50 + [2] * 50)
    assert cache.claim(branch, [], 0)
    assert (branch.cached, len(cache.kept), cache.cells.used) == (50, 1, 99)
    continuation = Wish([1] * 120)
    assert cache.claim(continuation, [branch], 50)
    assert (continuation.cached, continuation.seq_id, cache.kept) == (99, seq_id, [])


def test_the_longest_unused_goes_first() -> None:
    memory = Remembering()
    cache = PrefixCache(memory, 1000, 3)
    for number in range(3):
        cache.keep(filled(cache, memory, [number] * 40), 0)
    again = Wish([0] * 20 + [7] * 20)
    assert cache.claim(again, [], 0), "an id is needed: the second goes, the first is in use"
    assert [kept.tokens[0] for kept in cache.kept] == [2, 0]


def test_what_is_only_a_beginning_of_another_is_not_kept_twice() -> None:
    memory = Remembering()
    cache = PrefixCache(memory, 1000, 4)
    first, second = filled(cache, memory, [1] * 50), Wish([1] * 90)
    assert cache.claim(second, [first], 1)
    memory.decode(second, 40)
    cache.extend(second, 40)
    cache.keep(first, 0)
    cache.keep(second, 1)
    assert [kept.cached for kept in cache.kept] == [89]
    assert cache.cells.used == 89
