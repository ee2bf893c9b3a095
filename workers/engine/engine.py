"""The engine: one thread that owns llama.cpp and steps all running sequences together.

The event loop's thread talks to it through one queue, on which the engine sleeps while it has
nothing to do; it answers with one call into the loop a step, carrying every sequence's new text.
"""

from __future__ import annotations

import time
from asyncio import AbstractEventLoop
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import TypeVar

from workers.engine.batch_scheduler import Lane
from workers.engine.embeddings import Embedder, EmbeddingJob
from workers.engine.lora import AdapterCache
from workers.engine.metrics import Counters
from workers.engine.sequence import Failed, Sequence, SequenceEnd
from workers.engine.threads import ThreadTuner
from workers.llama.context import ContextOptions
from workers.llama.model import LlamaLog, LoadError, Model

T = TypeVar("T")


@dataclass(frozen=True)
class Cancel:
    """A client has gone: its work is not wanted any more."""

    work: Sequence | EmbeddingJob


@dataclass(frozen=True, eq=False)
class Task:
    """Something else to be done between two steps."""

    work: Callable[[], None]
    """Done on the engine's thread; must not raise."""
    lost: Callable[[], None]
    """Called instead when the engine has broken."""


Message = Sequence | EmbeddingJob | Cancel | Task


class Engine:
    """A lane of sequences, what is computed beside it, and the messages to and from them.


    `submit`, `cancel` and `embed` may be called from the loop's thread; so may the read-only
    attributes, which are a moment's view. Everything else is the engine thread's.
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
        """Makes the context; `slots` requests are served at a time, with at most `max_adapters`
        loaded. Raises LoadError."""
        self.model = model
        self.options = options
        self.embedding_options = embedding_options
        self.counters = Counters()
        self.shelf = AdapterCache(model, max_adapters, log, self.counters)
        self.lane = Lane(model, options, slots, self.shelf, log, self.counters, self._tell)
        self.isolated: Lane | None = None
        """For requests that share no step; made for the first of them."""
        self._embeddings: list[EmbeddingJob] = []
        self._embedder: Embedder | None = None
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._outbox: list[tuple[Sequence, str, SequenceEnd | None, int]] = []
        self._loop: AbstractEventLoop | None = None
        self.loop_began = 0.0
        """CPU seconds that the loop's thread had used before the first request."""
        self._on_broken: Callable[[], None] = lambda: None
        self.rounds = 0
        """How often the engine's thread has looked what there is to do."""
        self.resting = False
        """Whether there is nothing."""
        self._log = log

    # For the event loop's thread

    @property
    def longest_sequence(self) -> int:
        """Tokens one request may have, prompt and answer: all cells, or what it was trained on."""
        return min(self.lane.context.n_ctx, self.model.n_ctx_train)

    @property
    def slots(self) -> list[Sequence | None]:
        """Who is in each slot."""
        return self.lane.slots

    @property
    def processing(self) -> int:
        """Requests in a slot."""
        return sum(len(lane.admitted) for lane in self._lanes)

    @property
    def deferred(self) -> int:
        """Requests waiting for a slot."""
        return sum(len(lane.waiting) for lane in self._lanes) + self._inbox.qsize()

    @property
    def _lanes(self) -> list[Lane]:
        return [self.lane] if self.isolated is None else [self.lane, self.isolated]

    def attach(self, loop: AbstractEventLoop, on_broken: Callable[[], None]) -> None:
        """Names the loop whose thread, which is this one, sinks are called on. Before the first
        request."""
        self._loop = loop
        self.loop_began = time.thread_time()
        self._on_broken = on_broken

    def submit(self, sequence: Sequence) -> None:
        """Queues a request; its sink gets what becomes of it."""
        self._inbox.put(sequence)

    def cancel(self, work: Sequence | EmbeddingJob) -> None:
        """Takes a request out before the next step but one. Nobody is told its end."""
        self._inbox.put(Cancel(work))

    def run_between_steps(self, task: Task) -> None:
        """Queues something to do on the engine's thread."""
        self._inbox.put(task)

    def post(self, function: Callable[[T], None], argument: T) -> None:
        """Calls `function` on the event loop's thread. From any thread."""
        self._call(function, argument)

    def embed(self, job: EmbeddingJob) -> None:
        """Queues inputs to embed."""
        self._inbox.put(job)

    # For the engine's own thread

    def run(self) -> None:
        """Works for ever. Raises EngineBrokenError when llama.cpp fails at every step."""
        while True:
            self.rounds += 1
            if not (self._embeddings or any(lane.busy for lane in self._lanes)):
                self.resting = True
                message = self._inbox.get()
                self.resting = False
                self._take(message)
            while not self._inbox.empty():
                self._take(self._inbox.get())
            began = time.perf_counter()
            if self._embeddings:
                self._embed_step()
            for lane in self._lanes:
                if lane.busy:
                    lane.step()
            self._post()
            self.counters.step_seconds += time.perf_counter() - began

    def give_up(self, message: str) -> None:
        """Tells every request that it is over, and the loop that there will be no more."""
        while not self._inbox.empty():
            left = self._inbox.get()
            if isinstance(left, Task):
                left.lost()
            else:
                self._take(left)
        for sequence in [one for lane in self._lanes for one in (*lane.admitted, *lane.waiting)]:
            self._tell(sequence, "", Failed(message))
        for job in self._embeddings:
            self._call(job.done, RuntimeError(message))
        self._post()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._on_broken)

    def _take(self, message: Message) -> None:
        if isinstance(message, Sequence):
            self._enter(message)
        elif isinstance(message, EmbeddingJob):
            self._embeddings.append(message)
        elif isinstance(message, Task):
            message.work()
        elif isinstance(message.work, Sequence):
            if self._lane_of(message.work).leave(message.work):
                self.counters.requests["cancelled"] += 1
        elif message.work in self._embeddings:
            self._embeddings.remove(message.work)

    def _enter(self, sequence: Sequence) -> None:
        """Into the lane it belongs to."""
        try:
            if sequence.isolated and self.isolated is None:
                options = replace(self.options, n_seq_max=1, n_guesses=0)
                self.isolated = Lane(
                    self.model, options, 1, self.shelf, self._log, self.counters, self._tell
                )
                self.isolated.threads = ThreadTuner(
                    options.threads, options.threads_batch, steady=True
                )
        except LoadError as error:
            self._tell(sequence, "", Failed(f"There is no room to compute alone: {error}."))
            return
        self._lane_of(sequence).enter(sequence)

    def _lane_of(self, sequence: Sequence) -> Lane:
        return self.isolated if sequence.isolated and self.isolated is not None else self.lane

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

    def _tell(self, sequence: Sequence, text: str, end: SequenceEnd | None) -> None:
        self._outbox.append((sequence, text, end, sequence.generated))

    def _post(self) -> None:
        """Hands all new text to the loop's thread in one call."""
        if self._outbox:
            self._call(_deliver, self._outbox)
            self._outbox = []

    def _call(self, function: Callable[[T], None], argument: T) -> None:
        if self._loop is None:
            raise RuntimeError("the engine was given work before a loop")
        self._loop.call_soon_threadsafe(function, argument)


def _deliver(outbox: list[tuple[Sequence, str, SequenceEnd | None, int]]) -> None:
    for sequence, text, end, generated in outbox:
        sequence.sink.deliver(text, end, generated)
