"""The model runner: computes one step of the batch scheduler with llama.cpp.

A step is written into a batch, decoded, and a token is sampled for each sequence whose tokens are
then all in the cache. Draft tokens are decoded with it and verified by sampling their rows too;
known tokens of resumed answers are replayed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from workers.engine.lora import AdapterCache
from workers.engine.metrics import Counters
from workers.engine.replay import Replay, Replayer
from workers.engine.sequence import Sequence, SequenceEnd, Step
from workers.engine.speculation import Drafts, Speculation
from workers.engine.threads import ThreadTuner
from workers.llama.context import Batch, Context, ContextOptions
from workers.llama.model import LlamaLog, Model
from workers.llama.sampler import Sampler
from workers.llama.sampler_chain import build_sampler_chain

OUT_OF_CELLS = 1
"""The code of llama_decode for a batch that the cache has no cells for."""


@dataclass(frozen=True)
class EngineParts:
    """The parts of an engine that its schedulers and runners share."""

    model: Model
    adapter_cache: AdapterCache
    log: LlamaLog
    counters: Counters
    deliver: Callable[[Sequence, str, SequenceEnd | None], None]
    """Function that takes new text of a sequence, and its end."""


class DecodeError(Exception):
    """llama.cpp could not compute a step; the message is its reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.out_of_cells = code == OUT_OF_CELLS
        """True if the cache has no cells for the step; nothing has changed then."""


@dataclass(slots=True)
class SequenceOutput:
    """The tokens that a step brought for one sequence."""

    sequence: Sequence
    draft: list[int]
    """The draft tokens that were decoded with it."""
    tokens: list[int]
    """The accepted draft tokens and the token sampled after them; or replayed tokens."""


@dataclass(slots=True)
class StepResult:
    """The outcome of a computed step."""

    outputs: list[SequenceOutput]
    running: int
    """Sequences with a single token in the step."""
    prefill: int
    """Tokens of prompts in the step."""
    seconds: float
    """Time that the step took, sampling included."""
    completed_prompts: bool
    """True if the step read the last tokens of a prompt, or replayed tokens."""


@dataclass(slots=True)
class _Row:
    """A row of the batch to sample from; its draft tokens are in the rows after it."""

    sequence: Sequence
    row: int
    draft: list[int]


@dataclass(slots=True)
class _Filled:
    """The contents of a filled batch."""

    rows: list[_Row]
    replays: list[Replay]
    drafted: int
    """Draft tokens in the batch."""
    completed_prompts: bool


class ModelRunner:
    """Computes steps on one context. Used by the engine thread alone."""

    def __init__(
        self,
        parts: EngineParts,
        context: Context,
        options: ContextOptions,
        *,
        fixed_threads: bool,
    ) -> None:
        """Compute on `context`; with `fixed_threads`, always with the threads of `options`."""
        self.context = context
        self.threads = ThreadTuner(options.threads, options.threads_batch, fixed=fixed_threads)
        self.speculation: Speculation | None = None
        """The proposer of draft tokens, or None."""
        self.replayer = Replayer(parts.model, context, options.n_seq_max)
        self._model = parts.model
        self._log = parts.log
        self._counters = parts.counters
        self._batch = Batch(options.n_batch)
        self._greedy = Sampler()
        self._greedy.add("greedy")

    def start(self, sequence: Sequence) -> list[int]:
        """Make the sampler of a sequence; return its known tokens if they need no replay."""
        if sequence.constraint is None and sequence.sampling.greedy:
            return list(sequence.resumed)  # greedy sampling has no state to bring up to date
        prompt = sequence.tokens
        if sequence.resumed:
            prompt = prompt[: sequence.prompt_length]
        sequence.sampler = build_sampler_chain(
            sequence.sampling, self._model, self.context.n_ctx, prompt, sequence.constraint
        )
        return []

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence that has left its slot."""
        if self.speculation is not None:
            self.speculation.forget(sequence)

    def draft(self, step: Step, capacity: int) -> Drafts:
        """Propose at most `capacity` draft tokens for the running sequences of a step."""
        if self.speculation is None:
            return {}
        running = [sequence for sequence, count in step if count == sequence.pending == 1]
        return self.speculation.propose(running, capacity)

    def run(self, step: Step, drafts: Drafts) -> StepResult:
        """Decode a step with draft tokens and sample from it. Raises DecodeError."""
        filled = self._fill(step, drafts)
        # Decode.
        size, threads = self._batch.size, self.threads.choose(self._batch.size)
        self.context.use_threads(threads)
        began = time.perf_counter()
        code = self.context.decode(self._batch)
        llama_seconds = time.perf_counter() - began
        self.threads.observe(size, threads, llama_seconds)
        if code != 0:
            raise DecodeError(code, self._log.reason(f"llama_decode returned {code}"))
        # Sample and verify the drafts, then replay.
        outputs: list[SequenceOutput] = []
        for row in filled.rows:
            before = time.perf_counter()
            outputs.append(SequenceOutput(row.sequence, row.draft, self._sample(row)))
            if row.sequence.constraint is None:  # constrained sampling is half Python's
                llama_seconds += time.perf_counter() - before
        outputs += [
            SequenceOutput(replay.sequence, [], self.replayer.play(replay))
            for replay in filled.replays
        ]
        seconds = time.perf_counter() - began
        # Count.
        running = sum(1 for _, count in step if count == 1)
        result = StepResult(
            outputs, running, size - running - filled.drafted, seconds, filled.completed_prompts
        )
        self._counters.llama_seconds += llama_seconds
        self._count(step, result)
        self._judge(filled, result)
        return result

    def _fill(self, step: Step, drafts: Drafts) -> _Filled:
        """Write a step into the batch."""
        batch = self._batch
        batch.clear()
        filled = _Filled([], [], 0, completed_prompts=False)
        for sequence, count in step:
            cached = sequence.cached
            if count == 1 and sequence.pending == 1:
                row = batch.add(sequence.tokens[-1], cached, sequence.seq_id)
                draft = drafts.get(sequence, [])
                if draft:
                    batch.add_run(draft, cached + 1, sequence.seq_id, wanted="all")
                    filled.drafted += len(draft)
                filled.rows.append(_Row(sequence, row, draft))
            elif sequence.pending_replay:
                replay = self.replayer.fill(batch, sequence, count)
                if replay is not None:
                    filled.replays.append(replay)
                filled.completed_prompts = True
            else:
                complete = count == sequence.pending
                row = batch.add_run(
                    sequence.tokens[cached : cached + count],
                    cached,
                    sequence.seq_id,
                    wanted="last" if complete else "none",
                )
                if complete:
                    filled.rows.append(_Row(sequence, row, []))
                    filled.completed_prompts = True
        return filled

    def _sample(self, row: _Row) -> list[int]:
        """Sample the token after a row and, as long as the draft is right, those after it."""
        sampler = row.sequence.sampler or self._greedy
        tokens = [sampler.sample(self.context, row.row)]
        for place, drafted in enumerate(row.draft, 1):
            if tokens[-1] != drafted or self._model.piece(drafted) is None:
                break
            tokens.append(sampler.sample(self.context, row.row + place))
        return tokens

    def _count(self, step: Step, result: StepResult) -> None:
        counters = self._counters
        counters.steps += 1
        counters.busy_slots += len(step)
        counters.batch_tokens.observe(self._batch.size)
        counters.prompt_tokens += result.prefill

    def _judge(self, filled: _Filled, result: StepResult) -> None:
        """Record the cost of a step and the fate of its draft tokens for later proposals."""
        if self.speculation is None:
            return
        if self._batch.size == len(filled.rows) + filled.drafted:
            sampled = sum(len(output.tokens) for output in result.outputs)
            self.speculation.observe(len(filled.rows), filled.drafted, sampled, result.seconds)
        if filled.drafted == 0:
            return
        for output in result.outputs:
            if output.draft:
                drafted, accepted = len(output.draft), len(output.tokens) - 1
                self.speculation.judge(output.sequence, drafted, accepted)
                self._counters.draft_tokens += drafted
                self._counters.accepted_tokens += accepted
