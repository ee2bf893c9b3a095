"""Continuous batching: admission of sequences, the contents of each step, and preemption.

A step is planned by these rules, in this order:

1. Every running sequence (one token pending) is in every step.
2. The rest of the step is prefill, in chunks: for the prompt with the fewest pending tokens, the
   older first among equals, then for the next. So a short prompt gets through while a long one is
   still being read, and of prompts that arrive together each is done as early as possible, where
   equal shares would finish all of them at the end.
3. A quarter of the prefill belongs to the oldest prompt in any case, so that a stream of short
   prompts can't starve it.

A step is computed with one set of adapters. llama.cpp applies a set to a whole context, and a
change costs about a millisecond. So a set keeps its turn for ROTATION_STEPS steps while others
wait, and the next set is the one that has waited longest: with n sets in use, each has a step
within (n - 1) × ROTATION_STEPS others.
"""

from __future__ import annotations

import collections.abc
import time
from bisect import insort
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Generic, Protocol, TypeVar

from workers.engine.fair_queue import MAX_SKIPS, FairQueue
from workers.engine.kv_store import PersistentKvCache
from workers.engine.model_runner import DecodeError, EngineParts, StepResult
from workers.engine.prefix_cache import Adapters, PrefixCache
from workers.engine.sequence import Failed, Sequence, Step, take_token
from workers.llama.context import Context, ContextOptions
from workers.llama.model import LoadError, has_gpu

SMALLEST_CHUNK = 64
"""Prefill tokens below which a chunk costs almost as much as with this many. On a CPU it may cost
more: llama.cpp's flash attention works in tiles from 64 rows on, and row by row below (heads of
32: 565 ms for 32 rows, 143 ms for 64, with 1,000 cells filled)."""
CPU_CHUNK = 128
"""Prefill tokens that a CPU reads as fast, per token, as 512 (60 MB model: 2,460/s to 2,230/s)."""
ROTATION_STEPS = 4
"""Steps of one set of adapters in a row. Of 8 ms each, as on a 60 MB model, a change costs 3 % of
them."""
FAILED_STEPS = 3
"""Failed steps in a row after which the process ends with an error: the cause is no single
request."""


class SequenceLoad(Protocol):
    """The part of a sequence that step planning needs."""

    @property
    def cached(self) -> int:
        """Tokens in the cache."""

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache yet; at least 1."""


L = TypeVar("L", bound=SequenceLoad)


def plan_step(admitted: collections.abc.Sequence[L], batch: int, chunk: int) -> list[tuple[L, int]]:
    """Return the step: sequences with a number of their pending tokens, the oldest first.

    It has at most `batch` tokens in all, of which at most `chunk` for prefill; sequences without
    a token are left out.
    """
    running = sum(1 for load in admitted if load.pending == 1)
    budget = min(batch - running, chunk)
    reading = [load for load in admitted if load.pending > 1]
    prefill = dict.fromkeys(reading, 0)
    # Rule 3: a quarter for the oldest prompt.
    if reading:
        prefill[reading[0]] = min(reading[0].pending, max(1, budget // 4))
        budget -= prefill[reading[0]]
    # Rule 2: the rest for the shortest prompts.
    for load in sorted(reading, key=lambda load: load.pending):
        more = min(load.pending - prefill[load], budget)
        prefill[load] += more
        budget -= more
    # Rule 1: one token for each running sequence.
    step = [(load, prefill.get(load, 1)) for load in admitted]
    return [(load, count) for load, count in step if count > 0]


def split_step(step: list[tuple[L, int]], split_from: int) -> list[list[tuple[L, int]]]:
    """Split a step into the parts that are computed one after the other: one, or two.

    On a CPU, flash attention takes 64 rows at a time, and all of them read every cell that any of
    them needs. So a few running sequences with many cells cost more beside a prompt than reading
    the weights a second time: from about `split_from` cells on, the width of the model. A part of
    both kinds begins with the prompts, so that their rows have tiles of their own.
    """
    running = [(load, count) for load, count in step if load.pending == 1]
    reading = [(load, count) for load, count in step if load.pending > 1]
    if running and reading and sum(load.cached for load, _ in running) >= split_from:
        return [running, reading]
    return [reading + running]


class PrefillBudget:
    """The number of prefill tokens in a step.

    Beside running sequences, prefill may lengthen their step to SLOWDOWN times, or to SHORTEST
    seconds where steps are too short to notice. The limit is a time and not a number of tokens,
    because the cost of a chunk differs by a thousand times between machines and models; both costs
    are measured on the steps themselves. Without running sequences the chunk is a fixed number: a
    prompt that is read alone is read the same way every time, rounding included.
    """

    SLOWDOWN = 3.0
    SHORTEST = 0.02
    _WEIGHT = 0.2
    """Weight of a new measurement in the moving average."""

    def __init__(self, idle_chunk: int) -> None:
        """Use `idle_chunk` tokens in steps without running sequences."""
        self._idle_chunk = idle_chunk
        self._step: float | None = None
        """Seconds of a step without prefill."""
        self._token: float | None = None
        """Seconds that a prefill token adds."""

    def chunk(self, running: int, batch: int) -> int:
        """Return the prefill tokens of the next step."""
        if running == 0:
            return min(batch, self._idle_chunk)
        if self._token is None:
            return min(batch, 2 * SMALLEST_CHUNK)
        allowance = max(self.SHORTEST, self.SLOWDOWN * (self._step or 0.0))
        most = min(batch, int(allowance / self._token))
        return max(SMALLEST_CHUNK, most // SMALLEST_CHUNK * SMALLEST_CHUNK)

    def observe(self, running: int, prefill: int, seconds: float) -> None:
        """Record the seconds of a step with `running` single tokens and `prefill` others."""
        if prefill == 0:
            self._step = self._mean(self._step, seconds)
        elif prefill >= SMALLEST_CHUNK:
            base = (self._step or 0.0) if running else 0.0
            self._token = self._mean(self._token, max(seconds - base, 1e-7) / prefill)

    def _mean(self, before: float | None, value: float) -> float:
        return value if before is None else before + self._WEIGHT * (value - before)


def idle_chunk_size(n_ubatch: int, *, gpu: bool) -> int:
    """Return the prefill tokens of a step without running sequences.

    A step can't be interrupted, so one larger than llama.cpp computes at once would only delay new
    requests and cancellations. A CPU is at full speed with far fewer tokens.
    """
    return n_ubatch if gpu else min(CPU_CHUNK, n_ubatch)


S = TypeVar("S", bound=Hashable)


class AdapterRotation(Generic[S]):
    """The order in which sets of adapters have their steps."""

    def __init__(self) -> None:
        self._order: list[S] = []
        """Sets in use, the longest unserved first; the last one has the turn."""
        self._left = 0
        """Steps left of its turn."""
        self._waited: dict[S, int] = {}
        """Steps of other sets since a set arrived or had its own, for each set present."""
        self.longest = 0
        """The most steps of other sets that any set has waited for its own."""

    def next(self, present: Collection[S]) -> S:
        """Return the set of the next step, out of those with sequences, of which there is one."""
        last = [one for one in self._order[-1:] if one in present]
        waiting = [one for one in self._order[:-1] if one in present]
        waiting += [one for one in dict.fromkeys(present) if one not in self._order]
        if not last or self._left == 0:
            waiting += last
            last = [waiting.pop(0)]
            self._left = ROTATION_STEPS
        self._left -= 1
        self._order = waiting + last
        self._waited = {one: self._waited.get(one, 0) + 1 for one in waiting}
        self.longest = max([self.longest, *self._waited.values()])
        return last[0]


class EngineBrokenError(Exception):
    """llama.cpp fails at every step."""


class BatchScheduler:
    """Admission, preemption and step planning over one KV cache. Used by the engine thread alone.

    A sequence may use any cell of the cache. The cells in use plus the pending tokens of the
    admitted sequences never exceed the cells there are. When growth leads to that, cached
    sequences are evicted first; then the youngest admitted sequence is preempted and recomputed
    later. The oldest is never preempted, so at least one sequence always finishes, and no answer
    is cut short because of another one.
    """

    def __init__(
        self,
        parts: EngineParts,
        context: Context,
        options: ContextOptions,
        slots: int,
        on_release: Callable[[Sequence], None],
    ) -> None:
        """Schedule for `slots` sequences on `context`.

        `on_release` is called for each sequence that leaves its slot.
        """
        self.cache = PrefixCache(context, context.n_ctx, options.n_seq_max)
        self.slots: list[Sequence | None] = [None] * slots
        self.admitted: list[Sequence] = []
        """Sequences with a slot, the oldest first."""
        self.waiting: FairQueue[Sequence] = FairQueue()
        self.persistent_cache: PersistentKvCache | None = None
        """The KV cache on disk, or None."""
        self.rotation: AdapterRotation[Adapters] = AdapterRotation()
        self._model = parts.model
        self._adapter_cache = parts.adapter_cache
        self._adapter_cache.register(
            context, lambda: [admitted.adapters for admitted in self.admitted]
        )
        self._n_batch = options.n_batch
        self._counters = parts.counters
        self._deliver = parts.deliver
        self._on_release = on_release
        idle_chunk = idle_chunk_size(options.n_ubatch, gpu=has_gpu())
        self._prefill_budget = PrefillBudget(idle_chunk=idle_chunk)
        self._failed_steps = 0
        self._out_of_cells = False
        """True if llama.cpp found no cells in spite of the count: no admission until a sequence
        leaves."""
        self._admission_blocked = False
        """True if no waiting sequence fits and nothing has changed since that was found."""

    @property
    def busy(self) -> bool:
        """True if a sequence is admitted or waiting."""
        return bool(self.admitted or self.waiting)

    @property
    def pending_tokens(self) -> int:
        """Pending tokens of the admitted sequences."""
        return sum(sequence.pending for sequence in self.admitted)

    # Queue

    def enqueue(self, sequence: Sequence) -> None:
        """Add a sequence to the queue."""
        self.waiting.add(sequence)
        self._admission_blocked = False

    def remove(self, sequence: Sequence) -> bool:
        """Remove a sequence from its slot or the queue; return False if it had ended already."""
        was_here = sequence.slot >= 0 or sequence in self.waiting
        if sequence.slot >= 0:
            self._release_slot(sequence, store=sequence.reuses)
            self._out_of_cells = False
        else:
            self.waiting.remove(sequence)
            self._admission_blocked = False
        if sequence.sampler is not None:
            sequence.sampler.free()
            sequence.sampler = None
        return was_here

    # Admission

    def preempt_excess(self) -> None:
        """Preempt the youngest sequences until the pending tokens of the others fit."""
        pending = self.pending_tokens
        while not self.cache.ensure_capacity(pending) and len(self.admitted) > 1:
            pending -= self.admitted[-1].pending
            self.preempt(self.admitted[-1])
        self._out_of_cells = self._out_of_cells and bool(self.admitted)

    def preempt(self, sequence: Sequence) -> None:
        """Free the cells of a sequence and requeue it; it is recomputed later."""
        self._release_slot(sequence, store=False)
        self.enqueue(sequence)
        self._counters.preempted += 1

    def admit_next(self) -> Sequence | None:
        """Give a slot to the next waiting sequence that fits and return it, or None."""
        if self._admission_blocked or self._out_of_cells or None not in self.slots:
            return None
        sequence = self._select(self.pending_tokens)
        if sequence is None:
            self._admission_blocked = True
            return None
        sequence.slot = self.slots.index(None)
        self.slots[sequence.slot] = sequence
        insort(self.admitted, sequence, key=lambda admitted: admitted.number)
        return sequence

    def start_clock(self, sequence: Sequence) -> None:
        """Begin the timing and accounting of a sequence that has its first slot."""
        sequence.started = time.monotonic()
        self._counters.queue_wait.observe(sequence.started - sequence.arrived)
        sequence.reused = sequence.cached
        self._counters.reused_tokens += sequence.cached
        self.waiting.account(sequence.tenant, prefill=sequence.pending)

    def _select(self, pending: int) -> Sequence | None:
        """Take the first waiting sequence that fits out of the queue, with its cells allocated.

        A sequence that does not fit, or that needs an adapter which can't be loaded yet, is
        skipped, so that it blocks no other; but only a limited number of times.
        """
        skipped: list[Sequence] = []
        failed: list[Sequence] = []
        selected = None
        for sequence in self.waiting.in_order():
            try:
                ready = self._load_adapters(sequence)
                if ready and self.cache.is_being_computed(sequence, self.admitted):
                    continue  # not counted as skipped: it waits for a prefix that it will share
                if ready and self._allocate(sequence, pending):
                    selected = sequence
                    break
            except LoadError as error:
                self._deliver(sequence, "", Failed(f"The adapter can't be used: {error}.", 400))
                failed.append(sequence)
                continue
            skipped.append(sequence)
            if sequence.skipped >= MAX_SKIPS or len(skipped) == MAX_SKIPS:
                break
        if selected is not None:
            self.waiting.admit(selected, skipped)
        for sequence in failed:
            self._counters.requests["failed"] += 1
            self.remove(sequence)
        return selected

    def _load_adapters(self, sequence: Sequence) -> bool:
        """Load the adapters of a sequence; return False if that has to wait. Raises LoadError."""
        if not sequence.wanted:
            return True
        adapters = self._adapter_cache.prepare(sequence.wanted)
        sequence.adapters = adapters or ()
        return adapters is not None

    def _allocate(self, sequence: Sequence, pending: int) -> bool:
        """Allocate a sequence id and cells beside the admitted sequences, or return False."""
        if self.persistent_cache is not None and not sequence.disk_checked:
            sequence.disk_checked = True
            sequence.restored = self.persistent_cache.fetch(sequence, self.admitted, pending)
        return self.cache.allocate(sequence, self.admitted, pending)

    # Steps

    def plan(self) -> tuple[Adapters, Step]:
        """Return the next step and the adapters that it is computed with."""
        adapters = self.rotation.next([sequence.adapters for sequence in self.admitted])
        running = sum(1 for sequence in self.admitted if sequence.pending == 1)
        step = plan_step(
            [sequence for sequence in self.admitted if sequence.adapters == adapters],
            self._n_batch,
            self._prefill_budget.chunk(running, self._n_batch),
        )
        return adapters, step

    def draft_capacity(self, step: Step) -> int:
        """Return the draft tokens that the batch of `step` has free rows for."""
        return self._n_batch - sum(count for _, count in step)

    def reserve_drafts(self, count: int) -> bool:
        """Evict cached sequences until `count` draft tokens fit; return True if they do."""
        return self.cache.ensure_capacity(self.pending_tokens + count)

    def update(self, step: Step, result: StepResult) -> None:
        """Apply the result of a computed step: cache, text, ends."""
        self._failed_steps = 0
        self._prefill_budget.observe(result.running, result.prefill, result.seconds)
        now = time.monotonic()
        for sequence, count in step:
            self.cache.extend(sequence, count)
        for output in result.outputs:
            if output.draft:
                self._keep_accepted(output.sequence, len(output.draft), len(output.tokens) - 1)
            self.append(output.sequence, output.tokens, now)
        if result.completed_prompts:
            self._admission_blocked = False  # a waiting sequence may share a prefix read just now

    def append(self, sequence: Sequence, tokens: Iterable[int], now: float) -> None:
        """Append new tokens to a sequence and deliver their text, until the sequence ends."""
        for token in tokens:
            self.waiting.account(sequence.tenant, generated=0 if sequence.pending_replay else 1)
            text, end = take_token(sequence, token, self._model, self._counters, now)
            if text or end is not None:
                self._deliver(sequence, text, end)
            if end is not None:
                self.remove(sequence)
                return

    def _keep_accepted(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """Keep the cells of the accepted draft tokens and free those of the others."""
        self.cache.extend(sequence, drafted)
        if accepted < drafted:
            self.cache.trim(sequence, sequence.cached - drafted + accepted)

    def _release_slot(self, sequence: Sequence, *, store: bool) -> None:
        if sequence.cached > len(sequence.tokens):
            self.cache.trim(sequence, len(sequence.tokens))  # it ended within an accepted draft
        self._on_release(sequence)
        if store and sequence.cached > 0:
            self.cache.store(sequence, sequence.slot)
        else:
            self.cache.free(sequence)
        self.slots[sequence.slot] = None
        self.admitted.remove(sequence)
        sequence.slot = -1
        self._admission_blocked = False

    # Failures

    def handle_failure(self, step: Step, error: DecodeError) -> None:
        """Recover from a step that llama.cpp could not compute.

        Out of cells in spite of the count, which happens with caches that can't be truncated:
        cached sequences are evicted, then the youngest sequence is preempted. Anything else, or
        with only one sequence left, ends the sequences of the step. Raises EngineBrokenError
        after `FAILED_STEPS` of these in a row.
        """
        self._admission_blocked = False
        if error.out_of_cells and self.cache.evict_all():
            return
        if error.out_of_cells and len(self.admitted) > 1:
            self.preempt(self.admitted[-1])
            self._out_of_cells = True
            return
        sequences = [sequence for sequence, _ in step]
        if self.persistent_cache is not None and any(one.restored for one in sequences):
            self._recompute_restored(self.persistent_cache, sequences, str(error))
            return
        for sequence in sequences:
            sequence.reuses = False  # the contents of its cells are unknown
            self._deliver(sequence, "", Failed(f"llama.cpp failed: {error}"))
            self._counters.requests["failed"] += 1
            self.remove(sequence)
        self._failed_steps += 1
        if self._failed_steps >= FAILED_STEPS:
            raise EngineBrokenError(str(error))

    def _recompute_restored(
        self, persistent: PersistentKvCache, sequences: list[Sequence], reason: str
    ) -> None:
        """Recompute sequences that can't continue from the disk, and restore no more."""
        persistent.disable(f"the step after a restore failed: {reason}")
        for sequence in sequences:
            sequence.restored = sequence.reuses = False
            sequence.reused = 0
            self.preempt(sequence)
