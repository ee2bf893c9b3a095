"""The engine: one thread that owns llama.cpp and steps all running sequences together.

The event loop's thread sends messages through one queue, on which the engine sleeps while it is
idle. The engine answers with one call into the loop per step, with the new text of every sequence.
"""

from __future__ import annotations

import time
from asyncio import AbstractEventLoop
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import TypeVar

from workers.engine.batch_loop import BatchLoop
from workers.engine.embeddings import Embedder, EmbeddingJob
from workers.engine.lora import AdapterCache
from workers.engine.metrics import Counters
from workers.engine.model_runner import EngineParts
from workers.engine.sequence import Failed, Sequence, SequenceEnd
from workers.llama.context import ContextOptions
from workers.llama.model import LlamaLog, LoadError, Model

T = TypeVar("T")


@dataclass(frozen=True)
class Cancel:
    """A request to drop work whose client has gone."""

    work: Sequence | EmbeddingJob


@dataclass(frozen=True, eq=False)
class Task:
    """Other work to do between two steps."""

    work: Callable[[], None]
    """Function to call on the engine's thread; it must not raise."""
    lost: Callable[[], None]
    """Function to call instead when the engine has failed."""


Message = Sequence | EmbeddingJob | Cancel | Task


class Engine:
    """The batch loops, the embedder, and the messages to and from them.

    `submit`, `cancel` and `embed` may be called from the event loop's thread, and the read-only
    attributes may be read there, as snapshots. Everything else belongs to the engine's thread.
    """

    def __init__(
        self,
        model: Model,
        options: ContextOptions,
        embedding_options: ContextOptions,
        slots: int,
        max_adapters: int,
        log: LlamaLog,
    ) -> None:
        """Make the context for `slots` requests at a time, with at most `max_adapters` loaded.

        Raises LoadError.
        """
        self.model = model
        self.options = options
        self.embedding_options = embedding_options
        self.counters = Counters()
        self.adapter_cache = AdapterCache(model, max_adapters, log, self.counters)
        self._log = log
        self._parts = EngineParts(model, self.adapter_cache, log, self.counters, self._deliver)
        self._main = BatchLoop(self._parts, options, slots, fixed_threads=False)
        self._isolated: BatchLoop | None = None
        """The loop for requests that share no step; made for the first of them."""
        self.context = self._main.context
        self.scheduler = self._main.scheduler
        self.runner = self._main.runner
        self._embeddings: list[EmbeddingJob] = []
        self._embedder: Embedder | None = None
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._outbox: list[tuple[Sequence, str, SequenceEnd | None, int]] = []
        self._loop: AbstractEventLoop | None = None
        self.loop_began = 0.0
        """CPU seconds that the event loop's thread had used before the first request."""
        self._on_broken: Callable[[], None] = lambda: None
        self.iterations = 0
        """Iterations of the engine's thread."""
        self.idle = False
        """True while the engine's thread waits for a message."""

    # For the event loop's thread

    @property
    def longest_sequence(self) -> int:
        """Tokens one request may have, prompt and answer: all cells, or the trained length."""
        return min(self.context.n_ctx, self.model.n_ctx_train)

    @property
    def slots(self) -> list[Sequence | None]:
        """The sequence in each slot, or None."""
        return self.scheduler.slots

    @property
    def processing(self) -> int:
        """Requests in a slot."""
        return sum(len(loop.scheduler.admitted) for loop in self._loops)

    @property
    def deferred(self) -> int:
        """Requests waiting for a slot."""
        return sum(len(loop.scheduler.waiting) for loop in self._loops) + self._inbox.qsize()

    @property
    def longest_adapter_wait(self) -> int:
        """The most steps that a set of adapters has waited for its own."""
        return self.scheduler.rotation.longest

    @property
    def _loops(self) -> list[BatchLoop]:
        return [self._main] if self._isolated is None else [self._main, self._isolated]

    def attach(self, loop: AbstractEventLoop, on_broken: Callable[[], None]) -> None:
        """Set the event loop on whose thread, the calling one, sinks are called.

        To be called before the first request.
        """
        self._loop = loop
        self.loop_began = time.thread_time()
        self._on_broken = on_broken

    def submit(self, sequence: Sequence) -> None:
        """Queue a request; its text and its end go to its sink."""
        self._inbox.put(sequence)

    def cancel(self, work: Sequence | EmbeddingJob) -> None:
        """Drop a request before the next step but one, without an end to its sink."""
        self._inbox.put(Cancel(work))

    def run_between_steps(self, task: Task) -> None:
        """Queue work for the engine's thread."""
        self._inbox.put(task)

    def post(self, function: Callable[[T], None], argument: T) -> None:
        """Call `function` on the event loop's thread. May be called from any thread."""
        self._call(function, argument)

    def embed(self, job: EmbeddingJob) -> None:
        """Queue inputs to embed."""
        self._inbox.put(job)

    # For the engine's own thread

    def run(self) -> None:
        """Serve for ever. Raises EngineBrokenError when llama.cpp fails at every step."""
        while True:
            self.iterations += 1
            # Sleep while idle, then take all messages.
            if not (self._embeddings or any(loop.scheduler.busy for loop in self._loops)):
                self.idle = True
                message = self._inbox.get()
                self.idle = False
                self._handle(message)
            while not self._inbox.empty():
                self._handle(self._inbox.get())
            # One step of each kind.
            began = time.perf_counter()
            if self._embeddings:
                self._embed_step()
            for loop in self._loops:
                if loop.scheduler.busy:
                    loop.step()
            self._post()
            self.counters.step_seconds += time.perf_counter() - began

    def fail_all(self, message: str) -> None:
        """Fail every request with `message` and report to the event loop that no more is served."""
        while not self._inbox.empty():
            left = self._inbox.get()
            if isinstance(left, Task):
                left.lost()
            else:
                self._handle(left)
        for loop in self._loops:
            for sequence in (*loop.scheduler.admitted, *loop.scheduler.waiting):
                self._deliver(sequence, "", Failed(message))
        for job in self._embeddings:
            self._call(job.done, RuntimeError(message))
        self._post()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._on_broken)

    def _handle(self, message: Message) -> None:
        if isinstance(message, Sequence):
            self._enqueue(message)
        elif isinstance(message, EmbeddingJob):
            self._embeddings.append(message)
        elif isinstance(message, Task):
            message.work()
        elif isinstance(message.work, Sequence):
            if self._loop_of(message.work).scheduler.remove(message.work):
                self.counters.requests["cancelled"] += 1
        elif message.work in self._embeddings:
            self._embeddings.remove(message.work)

    def _enqueue(self, sequence: Sequence) -> None:
        """Add a sequence to the queue of its loop; make the isolated loop if it is the first."""
        try:
            if sequence.isolated and self._isolated is None:
                options = replace(self.options, n_seq_max=1, n_draft_rows=0)
                self._isolated = BatchLoop(self._parts, options, 1, fixed_threads=True)
        except LoadError as error:
            self._deliver(sequence, "", Failed(f"There is no memory to compute alone: {error}."))
            return
        self._loop_of(sequence).scheduler.enqueue(sequence)

    def _loop_of(self, sequence: Sequence) -> BatchLoop:
        return self._isolated if sequence.isolated and self._isolated is not None else self._main

    def _embed_step(self) -> None:
        """Compute the next inputs of the oldest job."""
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

    def _deliver(self, sequence: Sequence, text: str, end: SequenceEnd | None) -> None:
        self._outbox.append((sequence, text, end, sequence.generated))

    def _post(self) -> None:
        """Hand all new text to the event loop's thread in one call."""
        if self._outbox:
            self._call(_deliver_all, self._outbox)
            self._outbox = []

    def _call(self, function: Callable[[T], None], argument: T) -> None:
        if self._loop is None:
            raise RuntimeError("the engine was given work before an event loop")
        self._loop.call_soon_threadsafe(function, argument)


def _deliver_all(outbox: list[tuple[Sequence, str, SequenceEnd | None, int]]) -> None:
    for sequence, text, end, generated in outbox:
        sequence.sink.deliver(text, end, generated)
