"""The sequences that step together on one context: who comes in, what a step holds, who goes.

Which tokens go into the next step. Pure: numbers in, numbers out, no model.

Rules, in this order:

1. Every running sequence (one token pending) is in every step.
2. What is left of the step goes to prefill, in chunks: to the prompt with the least to go, the
   older first among equals, and on to the next. So a short prompt gets through while a long one
   is still being read, and of prompts that come together each is done as early as can be, where
   even shares would finish all of them at the end.
3. A quarter of that is the oldest one's in any case: no stream of short prompts holds it up.

Who is let in, and who goes back to the queue for want of cells, is the lane's and the cache's.

Whose step it is, where a step serves one set of adapters. Pure.

llama.cpp applies a set to a whole context, and changing it costs about a millisecond. So a set
keeps its turn for TURN steps while others wait, and the next is the one that has waited longest:
with n sets in use, each has a step within (n - 1) × TURN others.
"""

from __future__ import annotations

import collections.abc
import time
from bisect import insort
from collections.abc import Callable, Collection, Hashable
from typing import Generic, Protocol, TypeVar

from workers.engine.fair_queue import MOST_PASSES, FairQueue
from workers.engine.kv_store import PersistentKvCache
from workers.engine.lora import AdapterCache
from workers.engine.metrics import Counters
from workers.engine.prefix_cache import Adapters, PrefixCache
from workers.engine.replay import Replay, Replayer
from workers.engine.sequence import Failed, Sequence, SequenceEnd, take_token
from workers.engine.speculation import Speculation
from workers.engine.threads import ThreadTuner
from workers.llama.context import Batch, Context, ContextOptions
from workers.llama.model import LlamaLog, LoadError, Model, has_gpu
from workers.llama.sampler import Sampler
from workers.llama.sampler_chain import build_sampler_chain

SMALLEST_CHUNK = 64
"""Below this a chunk costs almost as much as with this many tokens; on a CPU it may cost more:
llama.cpp's flash attention works in tiles from 64 rows on, and row by row below (heads of 32:
565 ms for 32 rows, 143 ms for 64, with 1,000 cells filled)."""

CPU_CHUNK = 128
"""Tokens that a CPU reads as fast, one by one counted, as 512 (60 MB model: 2,460/s to 2,230/s)."""


class SequenceLoad(Protocol):
    """What the batcher sees of a sequence."""

    @property
    def cached(self) -> int:
        """How many of its tokens are in the cache."""

    @property
    def pending(self) -> int:
        """How many of them are not in the cache yet; at least 1."""


L = TypeVar("L", bound=SequenceLoad)


def plan_step(admitted: collections.abc.Sequence[L], batch: int, chunk: int) -> list[tuple[L, int]]:
    """The step: (sequence, how many of its pending tokens), oldest first, none with 0.

    At most `batch` tokens in all, of which at most `chunk` for prefill.
    """
    running = sum(1 for load in admitted if load.pending == 1)
    room = min(batch - running, chunk)
    reading = [load for load in admitted if load.pending > 1]
    given = dict.fromkeys(reading, 0)
    if reading:
        given[reading[0]] = min(reading[0].pending, max(1, room // 4))
        room -= given[reading[0]]
    for load in sorted(reading, key=lambda load: load.pending):
        more = min(load.pending - given[load], room)
        given[load] += more
        room -= more
    step = [(load, given.get(load, 1)) for load in admitted]
    return [(load, count) for load, count in step if count > 0]


def split_step(step: list[tuple[L, int]], apart_from: int) -> list[list[tuple[L, int]]]:
    """What of a step is computed at once: all of it, or the running ones and then the prompts.

    On a CPU, flash attention takes 64 rows at a time, and all of them look at every cell that any
    of them needs. So a few running sequences of many cells cost more beside a prompt than reading
    the weights once more does, from about as many cells on as the model is wide: `apart_from`.
    What is computed together begins with the prompts, so that their rows have tiles of their own.
    """
    running = [(load, count) for load, count in step if load.pending == 1]
    reading = [(load, count) for load, count in step if load.pending > 1]
    if running and reading and sum(load.cached for load, _ in running) >= apart_from:
        return [running, reading]
    return [reading + running]


class PrefillBudget:
    """How many prefill tokens a step may take.

    Beside running sequences, prefill may lengthen their step by SLOWDOWN times, or by SHORTEST
    seconds where steps are so short that nobody would notice. In time and not in tokens, because
    what a chunk costs differs by a thousand times between machines and models; both costs are
    measured on the steps themselves. With nobody running, the chunk is a fixed number: a prompt
    that is read alone is read the same way every time, rounding included.
    """

    SLOWDOWN = 3.0
    SHORTEST = 0.02
    _WEIGHT = 0.2
    """Of a new measurement in the moving average."""

    def __init__(self, alone: int) -> None:
        """`alone`: the chunk while nobody is running."""
        self._alone = alone
        self._step: float | None = None
        """Seconds of a step without prefill."""
        self._token: float | None = None
        """Seconds a prefill token adds."""

    def chunk(self, running: int, batch: int) -> int:
        """Prefill tokens for the next step."""
        if running == 0:
            return min(batch, self._alone)
        if self._token is None:
            return min(batch, 2 * SMALLEST_CHUNK)
        allowance = max(self.SHORTEST, self.SLOWDOWN * (self._step or 0.0))
        most = min(batch, int(allowance / self._token))
        return max(SMALLEST_CHUNK, most // SMALLEST_CHUNK * SMALLEST_CHUNK)

    def observe(self, running: int, prefill: int, seconds: float) -> None:
        """A step with `running` single tokens and `prefill` others took `seconds`."""
        if prefill == 0:
            self._step = self._mean(self._step, seconds)
        elif prefill >= SMALLEST_CHUNK:
            base = (self._step or 0.0) if running else 0.0
            self._token = self._mean(self._token, max(seconds - base, 1e-7) / prefill)

    def _mean(self, before: float | None, value: float) -> float:
        return value if before is None else before + self._WEIGHT * (value - before)


def chunk_alone(n_ubatch: int, *, gpu: bool) -> int:
    """Prefill tokens for a step in which nobody is running.

    No more than llama.cpp computes at once anyway: a step can't be left, so a longer one would
    only keep newcomers and cancellations waiting. A CPU is at full speed with far fewer.
    """
    return n_ubatch if gpu else min(CPU_CHUNK, n_ubatch)


TURN = 4
"""Steps. Of 8 ms each, as on a 60 MB model, changing costs 3 % of them."""

S = TypeVar("S", bound=Hashable)


class AdapterRotation(Generic[S]):
    """Remembers who was served, and when."""

    def __init__(self) -> None:
        self._order: list[S] = []
        """The sets in use, the longest unserved first; the last one has the turn."""
        self._left = 0
        """Steps that are left of its turn."""
        self._waited: dict[S, int] = {}
        """For each that is present, the steps of others since it came or had one."""
        self.longest = 0
        """The most steps of others that any set in use has waited for one of its own."""

    def next(self, present: Collection[S]) -> S:
        """The set of the next step, out of those that have sequences; there is one at least."""
        last = [one for one in self._order[-1:] if one in present]
        waiting = [one for one in self._order[:-1] if one in present]
        waiting += [one for one in dict.fromkeys(present) if one not in self._order]
        if not last or self._left == 0:
            waiting += last
            last = [waiting.pop(0)]
            self._left = TURN
        self._left -= 1
        self._order = waiting + last
        self._waited = {one: self._waited.get(one, 0) + 1 for one in waiting}
        self.longest = max([self.longest, *self._waited.values()])
        return last[0]


FAILED_STEPS = 3
"""So many failed steps in a row are no accident of one request: the process ends, loudly."""

Step = list[tuple[Sequence, int]]
"""Who decodes how many of the pending tokens."""
Guesses = dict[Sequence, list[int]]
Row = tuple[Sequence, int, list[int]]
"""A row to sample from: whose it is, its place, and what was guessed to follow, in the rows after
it."""


class EngineBrokenError(Exception):
    """llama.cpp fails at every step."""


class Lane:
    """Continuous batching over one context. The engine thread's own.

    A sequence may use any cell of the cache. What the cache holds plus what the admitted have
    pending never exceeds the cells there are: when growth leads to that, first what is only kept
    is given up, then the youngest is sent back to the queue, to be computed again later. The
    oldest is never sent back, so there is always one that gets to its end, and nobody's answer is
    cut short because of another's.
    """

    def __init__(
        self,
        model: Model,
        options: ContextOptions,
        slots: int,
        shelf: AdapterCache,
        log: LlamaLog,
        counters: Counters,
        tell: Callable[[Sequence, str, SequenceEnd | None], None],
    ) -> None:
        """Makes the context. `tell` takes a sequence's news. Raises LoadError."""
        self.model = model
        self.context = Context(model, options, log)
        self.cache = PrefixCache(self.context, self.context.n_ctx, options.n_seq_max)
        self.slots: list[Sequence | None] = [None] * slots
        self.admitted: list[Sequence] = []  # oldest first, as the batcher wants them
        self.waiting: FairQueue[Sequence] = FairQueue()
        self.conversations: PersistentKvCache | None = None
        """Where kept sequences are when the process is not; None: nowhere."""
        self._shelf = shelf
        shelf.serve(self.context, lambda: [admitted.adapters for admitted in self.admitted])
        self.turns: AdapterRotation[Adapters] = AdapterRotation()
        self._n_batch = options.n_batch
        self._log = log
        self._counters = counters
        self._tell = tell
        self._batch = Batch(options.n_batch)
        gpu = has_gpu()
        self._pace = PrefillBudget(alone=chunk_alone(options.n_ubatch, gpu=gpu))
        tiles = options.flash_attention != "off" and not gpu
        self._apart_from = model.n_embd if tiles else options.n_ctx
        self.threads = ThreadTuner(options.threads, options.threads_batch)
        self._greedy = Sampler()
        self._greedy.add("greedy")
        self.speculation: Speculation | None = None
        """Who guesses ahead; None: nobody."""
        self._guessed = 0
        """Tokens in the step that were guessed."""
        self.replayer = Replayer(model, self.context, options.n_seq_max)
        self._replays: list[Replay] = []
        """What the step has of answers that were begun elsewhere."""
        self._failures = 0
        self._out_of_cells = False
        """llama.cpp had no room in spite of the count: nobody comes in until someone leaves."""
        self._admission_blocked = False
        """Nobody of the waiting fits, and nothing has changed since that was found."""

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.admitted or self.waiting)

    @property
    def growing(self) -> int:
        """Tokens that the admitted have pending."""
        return sum(sequence.pending for sequence in self.admitted)

    def enter(self, sequence: Sequence) -> None:
        """Queues a sequence."""
        self.waiting.add(sequence)
        self._admission_blocked = False

    def leave(self, sequence: Sequence) -> bool:
        """Ends a sequence wherever it is; whether it had not ended already."""
        was_here = sequence.slot >= 0 or sequence in self.waiting
        if sequence.slot >= 0:
            self._release_slot(sequence, keep=sequence.reuses)
            self._out_of_cells = False
        else:
            self.waiting.remove(sequence)
            self._admission_blocked = False
        if sequence.sampler is not None:
            sequence.sampler.free()
            sequence.sampler = None
        return was_here

    def step(self) -> None:
        """Lets in who fits, decodes what is next, and samples a token for each complete sequence.

        Raises EngineBrokenError when llama.cpp fails at every step.
        """
        self._admit()
        if not self.admitted:
            return
        adapters = self.turns.next([sequence.adapters for sequence in self.admitted])
        self._shelf.apply(self.context, adapters)
        step = self._plan([one for one in self.admitted if one.adapters == adapters])
        guesses = self._guesses(step)
        for part in split_step(step, self._apart_from):
            if not self._compute(part, guesses):
                break

    def _compute(self, step: Step, guesses: Guesses) -> bool:
        """Decodes a part of a step and samples what is complete; whether llama.cpp could."""
        rows = self._fill(step, guesses)
        size, threads = self._batch.size, self.threads.choose(self._batch.size)
        self.context.use_threads(threads)
        began = time.perf_counter()
        code = self.context.decode(self._batch)
        spent = time.perf_counter() - began
        self.threads.observe(size, threads, spent)
        if code != 0:
            self._step_failed(code, [sequence for sequence, _ in step])
            return False
        self._failures = 0
        sampled = []
        for sequence, row, guess in rows:
            before = time.perf_counter()
            sampled.append((sequence, guess, self._sample(sequence, row, guess)))
            if sequence.guide is None:  # what follows a grammar is half Python's
                spent += time.perf_counter() - before
        sampled += [(one.sequence, [], self.replayer.play(one)) for one in self._replays]
        self._counters.llama_seconds += spent
        took = time.perf_counter() - began
        self._count(step, took)
        if self.speculation is not None and size == len(rows) + self._guessed:
            drawn = sum(len(tokens) for _, _, tokens in sampled)
            self.speculation.settle(len(rows), self._guessed, drawn, took)
        now = time.monotonic()
        for sequence, count in step:
            self.cache.extend(sequence, count)
        for sequence, guess, tokens in sampled:
            if guess:
                self._judge(sequence, guess, len(tokens) - 1)
            self._take(sequence, tokens, now)
        return True

    def _plan(self, present: list[Sequence]) -> Step:
        """Who of those whose turn it is decodes how many tokens."""
        running = sum(1 for sequence in self.admitted if sequence.pending == 1)
        step = plan_step(present, self._n_batch, self._pace.chunk(running, self._n_batch))
        return self.replayer.bounded(step)

    def _admit(self) -> None:
        """Sends back whom the cells don't suffice for, then lets in those whose turn it is."""
        growing = self.growing
        while not self.cache.make_room(growing) and len(self.admitted) > 1:
            growing -= self.admitted[-1].pending
            self._send_back(self.admitted[-1])
        self._out_of_cells = self._out_of_cells and bool(self.admitted)
        while not (self._admission_blocked or self._out_of_cells) and None in self.slots:
            sequence = self._next(growing)
            if sequence is None:
                self._admission_blocked = True
                return
            growing += sequence.pending
            sequence.slot = self.slots.index(None)
            self.slots[sequence.slot] = sequence
            insort(self.admitted, sequence, key=lambda admitted: admitted.number)
            self._prepare(sequence)

    def _next(self, growing: int) -> Sequence | None:
        """The first of the waiting that fits, with its sequence id; None if none does.

        Who does not fit, or needs an adapter for which there is no room yet, holds up nobody
        else: until it has been passed too often.
        """
        passing: list[Sequence] = []
        hopeless: list[Sequence] = []
        chosen = None
        for sequence in self.waiting.in_order():
            try:
                ready = self._ready(sequence)
                if ready and self.cache.is_being_read(sequence, self.admitted):
                    continue  # not passed over: it waits for what it will share
                if ready and self._claim(sequence, growing):
                    chosen = sequence
                    break
            except LoadError as error:
                self._tell(sequence, "", Failed(f"The adapter can't be used: {error}.", 400))
                hopeless.append(sequence)
                continue
            passing.append(sequence)
            if sequence.passed >= MOST_PASSES or len(passing) == MOST_PASSES:
                break
        if chosen is not None:
            self.waiting.let_in(chosen, passing)
        for sequence in hopeless:
            self._counters.requests["failed"] += 1
            self.leave(sequence)
        return chosen

    def _claim(self, sequence: Sequence, growing: int) -> bool:
        """Whether there is a sequence id for it, and room beside the admitted."""
        if self.conversations is not None and not sequence.sought:
            sequence.sought = True
            sequence.restored = self.conversations.fetch(sequence, self.admitted, growing)
        return self.cache.claim(sequence, self.admitted, growing)

    def _ready(self, sequence: Sequence) -> bool:
        """Whether its adapters are loaded. Raises LoadError if they can't be."""
        if not sequence.wanted:
            return True
        adapters = self._shelf.prepare(sequence.wanted)
        sequence.adapters = adapters or ()
        return adapters is not None

    def _prepare(self, sequence: Sequence) -> None:
        """At a sequence's first slot: its clock starts, its sampler is made."""
        if sequence.started:
            return
        sequence.started = time.monotonic()
        self._counters.queue_wait.observe(sequence.started - sequence.arrived)
        sequence.reused = sequence.cached
        self._counters.reused_tokens += sequence.cached
        self.waiting.charge(sequence.tenant, prefill=sequence.pending)
        prompt, known = sequence.tokens, sequence.resumed
        if known:
            prompt = prompt[: sequence.prompt_length]
        if sequence.guide is not None or not sequence.sampling.greedy:
            sequence.sampler = build_sampler_chain(
                sequence.sampling, self.model, self.context.n_ctx, prompt, sequence.guide
            )
        elif known:
            self._take(sequence, list(known), sequence.started)  # there is nobody to be told

    def _guesses(self, step: Step) -> Guesses:
        """What is guessed to follow the running ones, where there is room to try it."""
        if self.speculation is None:
            return {}
        running = [sequence for sequence, count in step if count == sequence.pending == 1]
        room = self._n_batch - sum(count for _, count in step)
        guesses = self.speculation.guesses(running, room)
        more = sum(map(len, guesses.values()))
        return guesses if self.cache.make_room(self.growing + more) else {}

    def _fill(self, step: Step, guesses: Guesses) -> list[Row]:
        """Writes the batch. Returns the rows to sample from."""
        batch = self._batch
        batch.clear()
        rows: list[Row] = []
        self._replays = []
        for sequence, count in step:
            cached = sequence.cached
            if count == 1 and sequence.pending == 1:
                row = batch.add(sequence.tokens[-1], cached, sequence.seq_id)
                guess = guesses.get(sequence, [])
                if guess:
                    batch.add_run(guess, cached + 1, sequence.seq_id, wanted="all")
                rows.append((sequence, row, guess))
                continue
            if sequence.unplayed:
                replay = self.replayer.fill(batch, sequence, count)
                self._replays += [replay] if replay is not None else []
                self._admission_blocked = False
                continue
            run = sequence.tokens[cached : cached + count]
            complete = count == sequence.pending
            wanted = "last" if complete else "none"
            row = batch.add_run(run, cached, sequence.seq_id, wanted=wanted)
            if complete:
                rows.append((sequence, row, []))
                self._admission_blocked = False  # somebody may wait to share what is read now
        self._guessed = sum(len(guess) for _, _, guess in rows)
        return rows

    def _sample(self, sequence: Sequence, row: int, guess: list[int]) -> list[int]:
        """The token after `row`, and as long as they were guessed right, those after it."""
        sampler = sequence.sampler or self._greedy
        tokens = [sampler.sample(self.context, row)]
        for place, guessed in enumerate(guess, 1):
            if tokens[-1] != guessed or self.model.piece(guessed) is None:
                break
            tokens.append(sampler.sample(self.context, row + place))
        return tokens

    def _judge(self, sequence: Sequence, guess: list[int], right: int) -> None:
        """Keeps in the cache what of a guess was right."""
        self.cache.extend(sequence, len(guess))
        if right < len(guess):
            self.cache.trim(sequence, sequence.cached - len(guess) + right)
        if self.speculation is not None:
            self.speculation.judge(sequence, len(guess), right)
        self._counters.guessed_tokens += len(guess)
        self._counters.right_guesses += right

    def _count(self, step: Step, seconds: float) -> None:
        running = sum(1 for sequence, count in step if count == 1)
        prefill = self._batch.size - running - self._guessed
        self._pace.observe(running, prefill, seconds)
        counters = self._counters
        counters.steps += 1
        counters.busy_slots += len(step)
        counters.batch_tokens.observe(self._batch.size)
        counters.prompt_tokens += prefill

    def _take(self, sequence: Sequence, tokens: list[int], now: float) -> None:
        """New tokens of a sequence: their text goes out, until it has come to its end."""
        for token in tokens:
            self.waiting.charge(sequence.tenant, generated=0 if sequence.unplayed else 1)
            text, end = take_token(sequence, token, self.model, self._counters, now)
            if text or end is not None:
                self._tell(sequence, text, end)
            if end is not None:
                self.leave(sequence)
                return

    def _send_back(self, sequence: Sequence) -> None:
        """Its cells are needed by older ones: it waits, and is computed again."""
        self._release_slot(sequence, keep=False)
        self.enter(sequence)
        self._counters.preempted += 1

    def _release_slot(self, sequence: Sequence, *, keep: bool) -> None:
        if sequence.cached > len(sequence.tokens):
            self.cache.trim(sequence, len(sequence.tokens))  # it ended within a right guess
        if self.speculation is not None:
            self.speculation.forget(sequence)
        if keep and sequence.cached > 0:
            self.cache.keep(sequence, sequence.slot)
        else:
            self.cache.drop(sequence)
        self.slots[sequence.slot] = None
        self.admitted.remove(sequence)
        sequence.slot = -1
        self._admission_blocked = False

    def _step_failed(self, code: int, step: list[Sequence]) -> None:
        """Out of cells in spite of the count (caches that are not simple): the youngest waits.

        Anything else, or with nobody left to send away, is the end of the sequences in the step.
        """
        reason = self._log.reason(f"llama_decode returned {code}")
        if code == 1 and self.cache.give_up_all():
            return
        if code == 1 and len(self.admitted) > 1:
            self._send_back(self.admitted[-1])
            self._out_of_cells = True
            return
        if self.conversations is not None and any(sequence.restored for sequence in step):
            self._restored_in_vain(step, reason)
            return
        for sequence in step:
            sequence.reuses = False  # nobody knows what is in its cells
            self._tell(sequence, "", Failed(f"llama.cpp failed: {reason}"))
            self._counters.requests["failed"] += 1
            self.leave(sequence)
        self._failures += 1
        if self._failures >= FAILED_STEPS:
            raise EngineBrokenError(reason)

    def _restored_in_vain(self, step: list[Sequence], reason: str) -> None:
        """What came back from disk can't be gone on from: begin anew, and restore no more."""
        if self.conversations is not None:
            self.conversations.refuse(f"the step after a restore failed: {reason}")
        for sequence in step:
            sequence.restored = sequence.reuses = False
            sequence.reused = 0
            self._send_back(sequence)
