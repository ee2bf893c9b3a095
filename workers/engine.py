"""The engine: one thread that owns llama.cpp and steps all running sequences together.

The event loop's thread talks to it through one queue, on which the engine sleeps while it has
nothing to do; it answers with one call into the loop a step, carrying every sequence's new text.
"""

from __future__ import annotations

import time
from asyncio import AbstractEventLoop
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

from workers import batcher
from workers.binding import (
    Batch,
    Context,
    ContextOptions,
    LlamaLog,
    LoadError,
    Model,
    has_gpu,
)
from workers.binding_sampler import Sampler
from workers.embedding import Embedder, EmbeddingJob
from workers.lifeline import Lifeline
from workers.metrics import Counters
from workers.sampling import make_sampler
from workers.sequence import End, Failed, Finished, Sequence, Timings

T = TypeVar("T")
CPU_CHUNK = 128
"""Tokens that a CPU reads as fast, one by one counted, as 512 (60 MB model: 2,460/s to 2,230/s)."""
FAILED_STEPS = 3
"""So many failed steps in a row are no accident of one request: the process ends, loudly."""


class EngineBrokenError(Exception):
    """llama.cpp fails at every step."""


@dataclass(frozen=True)
class Cancel:
    """A client has gone: its work is not wanted any more."""

    work: Sequence | EmbeddingJob


Message = Sequence | EmbeddingJob | Cancel


class Engine:
    """Continuous batching over one context.

    `submit`, `cancel` and `embed` may be called from the loop's thread; so may the read-only
    attributes, which are a moment's view. Everything else is the engine thread's.
    """

    def __init__(
        self,
        model: Model,
        options: ContextOptions,
        embedding_options: ContextOptions,
        lifeline: Lifeline,
        log: LlamaLog,
    ) -> None:
        """Makes the context. Raises LoadError."""
        self.model = model
        self.options = options
        self.embedding_options = embedding_options
        self.counters = Counters()
        self.context = Context(model, options, log)
        self.slots: list[Sequence | None] = [None] * options.n_seq_max
        self._admitted: list[Sequence] = []  # oldest first, as the batcher wants them
        self._waiting: list[Sequence] = []  # likewise
        self._embeddings: list[EmbeddingJob] = []
        self._embedder: Embedder | None = None
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._outbox: list[tuple[Sequence, str, End | None]] = []
        self._loop: AbstractEventLoop | None = None
        self._on_broken: Callable[[], None] = lambda: None
        self._lifeline = lifeline
        self._log = log
        self._batch = Batch(options.n_batch)
        self._pace = batcher.PrefillPace(alone=_chunk_alone(options))
        self._greedy = Sampler()
        self._greedy.add("greedy")
        self._failures = 0
        self._cramped = False
        """llama.cpp had no room in spite of the count: nobody comes in until someone leaves."""

    # For the event loop's thread

    @property
    def longest_sequence(self) -> int:
        """Tokens one request may have, prompt and answer: all cells, or what it was trained on."""
        return min(self.context.n_ctx, self.model.n_ctx_train)

    @property
    def processing(self) -> int:
        """Requests in a slot."""
        return len(self._admitted)

    @property
    def deferred(self) -> int:
        """Requests waiting for a slot."""
        return len(self._waiting) + self._inbox.qsize()

    def attach(self, loop: AbstractEventLoop, on_broken: Callable[[], None]) -> None:
        """Names the loop whose thread sinks are called on. Before the first request."""
        self._loop = loop
        self._on_broken = on_broken

    def submit(self, sequence: Sequence) -> None:
        """Queues a request; its sink gets what becomes of it."""
        self._inbox.put(sequence)

    def cancel(self, work: Sequence | EmbeddingJob) -> None:
        """Takes a request out before the next step but one. Nobody is told its end."""
        self._inbox.put(Cancel(work))

    def embed(self, job: EmbeddingJob) -> None:
        """Queues inputs to embed."""
        self._inbox.put(job)

    # For the engine's own thread

    def run(self) -> None:
        """Works for ever. Raises EngineBrokenError when llama.cpp fails at every step."""
        while True:
            idle = not (self._admitted or self._waiting or self._embeddings)
            if idle:
                self._take(self._inbox.get())
            while not self._inbox.empty():
                self._take(self._inbox.get())
            began = time.perf_counter()
            if self._embeddings:
                self._embed_step()
            self._admit()
            if self._admitted:
                self._step()
            self._post()
            self.counters.step_seconds += time.perf_counter() - began
            self._lifeline.beat(self.counters.steps)

    def give_up(self, message: str) -> None:
        """Tells every request that it is over, and the loop that there will be no more."""
        while not self._inbox.empty():
            self._take(self._inbox.get())
        for sequence in [*self._admitted, *self._waiting]:
            self._outbox.append((sequence, "", Failed(message)))
        for job in self._embeddings:
            self._call(job.done, RuntimeError(message))
        self._post()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._on_broken)

    def _take(self, message: Message) -> None:
        if isinstance(message, Sequence):
            insort(self._waiting, message, key=lambda sequence: sequence.number)
        elif isinstance(message, EmbeddingJob):
            self._embeddings.append(message)
        elif isinstance(message.work, Sequence):
            self._leave(message.work)
        elif message.work in self._embeddings:
            self._embeddings.remove(message.work)

    def _admit(self) -> None:
        """Sends back whom the cells don't suffice for, then lets in who has waited longest."""
        for sequence in batcher.overflow(self._admitted, self.context.n_ctx):
            self._release_slot(sequence)
            insort(self._waiting, sequence, key=lambda waiting: waiting.number)
            self.counters.sent_back += 1
        self._cramped = self._cramped and bool(self._admitted)
        while self._waiting and None in self.slots and not self._cramped:
            sequence = self._waiting[0]
            if not batcher.fits(sequence, self._admitted, self.context.n_ctx):
                break
            del self._waiting[0]
            sequence.slot = self.slots.index(None)
            self.slots[sequence.slot] = sequence
            insort(self._admitted, sequence, key=lambda admitted: admitted.number)
            self._prepare(sequence)

    def _prepare(self, sequence: Sequence) -> None:
        """At a sequence's first slot: its clock starts, its sampler is made."""
        if sequence.started:
            return
        sequence.started = time.monotonic()
        if sequence.guide is not None or not sequence.sampling.greedy:
            sequence.sampler = make_sampler(
                sequence.sampling, self.model, self.context.n_ctx, sequence.tokens, sequence.guide
            )

    def _step(self) -> None:
        """Decodes one batch and samples a token for every sequence whose turn is complete."""
        admitted = self._admitted
        running = sum(1 for sequence in admitted if sequence.pending == 1)
        chunk = self._pace.chunk(running, self.options.n_batch)
        step = batcher.shares(admitted, self.options.n_batch, chunk)
        rows = self._fill(step)
        began = time.perf_counter()
        code = self.context.decode(self._batch)
        if code != 0:
            self._step_failed(code, [sequence for sequence, _ in step])
            return
        self._failures = 0
        sampled = [
            (sequence, (sequence.sampler or self._greedy).sample(self.context, row))
            for sequence, row in rows
        ]
        seconds = time.perf_counter() - began
        for sequence, count in step:
            sequence.cached += count
        self._count(running, len(step), seconds)
        now = time.monotonic()
        for sequence, token in sampled:
            self._take_token(sequence, token, now)

    def _fill(self, step: list[tuple[Sequence, int]]) -> list[tuple[Sequence, int]]:
        """Writes the batch. Returns (sequence, row of its logits) for those to be sampled."""
        batch = self._batch
        batch.clear()
        rows = []
        for sequence, count in step:
            cached = sequence.cached
            if count == 1 and sequence.pending == 1:
                rows.append((sequence, batch.add(sequence.tokens[-1], cached, sequence.slot)))
                continue
            run = sequence.tokens[cached : cached + count]
            complete = count == sequence.pending
            row = batch.add_run(run, cached, sequence.slot, wanted="last" if complete else "none")
            if complete:
                rows.append((sequence, row))
        return rows

    def _count(self, running: int, sequences: int, seconds: float) -> None:
        prefill = self._batch.size - running
        self._pace.observe(running, prefill, seconds)
        counters = self.counters
        counters.steps += 1
        counters.llama_seconds += seconds
        counters.busy_slots += sequences
        counters.prompt_tokens += prefill

    def _take_token(self, sequence: Sequence, token: int, now: float) -> None:
        """A sequence's new token: its text goes out, or the sequence comes to its end."""
        if not sequence.first_token:
            sequence.first_token = now
            if sequence.limit == 0:
                self._finish(sequence, "", "length", now)
                return
        sequence.tokens.append(token)
        self.counters.predicted_tokens += 1
        piece = self.model.piece(token)
        if piece is None:
            self._finish(sequence, sequence.output.rest(), "stop", now)
            return
        text = sequence.output.push(piece)
        if sequence.output.stopped:
            self._finish(sequence, text, "stop", now)
        elif sequence.generated >= sequence.limit:
            self._finish(sequence, text + sequence.output.rest(), "length", now)
        elif text:
            if sequence.streaming:
                self._outbox.append((sequence, text, None))
            else:
                sequence.text.append(text)

    def _finish(self, sequence: Sequence, text: str, reason: str, now: float) -> None:
        timings = Timings(
            prompt_tokens=sequence.prompt_length,
            prompt_seconds=sequence.first_token - sequence.started,
            predicted_tokens=sequence.generated,
            predicted_seconds=now - sequence.first_token,
        )
        counters = self.counters
        counters.prompt_seconds += timings.prompt_seconds
        counters.predicted_seconds += timings.predicted_seconds
        counters.longest = max(counters.longest, sequence.length)
        counters.first_token.observe(sequence.first_token - sequence.arrived)
        if timings.predicted_tokens > 1:
            counters.per_token.observe(timings.predicted_seconds / (timings.predicted_tokens - 1))
        self._outbox.append((sequence, "".join(sequence.text) + text, Finished(reason, timings)))
        self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Ends a sequence wherever it is; nothing if it has ended already."""
        if sequence.slot >= 0:
            self._release_slot(sequence)
            self._cramped = False
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        if sequence.sampler is not None:
            sequence.sampler.free()
            sequence.sampler = None

    def _release_slot(self, sequence: Sequence) -> None:
        self.context.forget(sequence.slot)
        self.slots[sequence.slot] = None
        self._admitted.remove(sequence)
        sequence.slot, sequence.cached = -1, 0

    def _step_failed(self, code: int, step: list[Sequence]) -> None:
        """Out of cells in spite of the count (caches that are not simple): the youngest waits.

        Anything else, or with nobody left to send away, is the end of the sequences in the step.
        """
        reason = self._log.reason(f"llama_decode returned {code}")
        if code == 1 and len(self._admitted) > 1:
            youngest = self._admitted[-1]
            self._release_slot(youngest)
            insort(self._waiting, youngest, key=lambda waiting: waiting.number)
            self.counters.sent_back += 1
            self._cramped = True
            return
        for sequence in step:
            self._outbox.append((sequence, "", Failed(f"llama.cpp failed: {reason}")))
            self._leave(sequence)
        self._failures += 1
        if self._failures >= FAILED_STEPS:
            raise EngineBrokenError(reason)

    def _embed_step(self) -> None:
        """The next inputs of the oldest job."""
        job = self._embeddings[0]
        began = time.perf_counter()
        try:
            if self._embedder is None:
                self._embedder = Embedder(self.model, self.embedding_options, self._log)
            count = self._embedder.step(job)
        except (RuntimeError, LoadError) as error:
            del self._embeddings[0]
            self._call(job.done, error)
            return
        self.counters.steps += 1
        self.counters.busy_slots += count
        self.counters.llama_seconds += time.perf_counter() - began
        if len(job.vectors) == len(job.inputs):
            del self._embeddings[0]
            self._call(job.done, job.vectors)

    def _post(self) -> None:
        """Hands all new text to the loop's thread in one call."""
        if self._outbox:
            self._call(_deliver, self._outbox)
            self._outbox = []

    def _call(self, function: Callable[[T], None], argument: T) -> None:
        if self._loop is None:
            raise RuntimeError("the engine was given work before a loop")
        self._loop.call_soon_threadsafe(function, argument)


def _chunk_alone(options: ContextOptions) -> int:
    """Prefill tokens for a step in which nobody is running.

    No more than llama.cpp computes at once anyway: a step can't be left, so a longer one would
    only keep newcomers and cancellations waiting. A CPU is at full speed with far fewer.
    """
    return options.n_ubatch if has_gpu() else min(CPU_CHUNK, options.n_ubatch)


def _deliver(outbox: list[tuple[Sequence, str, End | None]]) -> None:
    for sequence, text, end in outbox:
        sequence.sink.deliver(text, end)
