"""The step of a batch scheduler and a model runner on one context."""

from __future__ import annotations

from workers.engine.batch_scheduler import BatchScheduler, split_step
from workers.engine.model_runner import DecodeError, EngineParts, ModelRunner
from workers.engine.sequence import Sequence, Step
from workers.engine.speculation import Drafts
from workers.llama.context import Context, ContextOptions
from workers.llama.model import has_gpu


class BatchLoop:
    """Continuous batching over one context. Used by the engine thread alone."""

    def __init__(
        self, parts: EngineParts, options: ContextOptions, slots: int, *, fixed_threads: bool
    ) -> None:
        """Make the context. Raises LoadError."""
        self.context = Context(parts.model, options, parts.log)
        self.runner = ModelRunner(parts, self.context, options, fixed_threads=fixed_threads)
        self.scheduler = BatchScheduler(parts, self.context, options, slots, self.runner.release)
        self._adapter_cache = parts.adapter_cache
        tiled = options.flash_attention != "off" and not has_gpu()
        self._split_from = parts.model.n_embd if tiled else options.n_ctx

    def step(self) -> None:
        """Admit the sequences that fit, and compute and deliver the next step.

        Raises EngineBrokenError when llama.cpp fails at every step.
        """
        scheduler = self.scheduler
        # Preemption before admission: a sequence is not admitted into cells that are needed.
        scheduler.preempt_excess()
        while (sequence := scheduler.admit_next()) is not None:
            self._start(sequence)
        if not scheduler.admitted:
            return
        adapters, step = scheduler.plan()
        self._adapter_cache.apply(self.context, adapters)
        step = self.runner.replayer.bounded(step)
        drafts = self._draft(step)
        for part in split_step(step, self._split_from):
            try:
                result = self.runner.run(part, drafts)
            except DecodeError as error:
                scheduler.handle_failure(part, error)
                break  # the other part may hold sequences that are gone now
            scheduler.update(part, result)

    def _start(self, sequence: Sequence) -> None:
        """Start the clock and make the sampler of a sequence that has its first slot."""
        if not sequence.started:
            self.scheduler.start_clock(sequence)
            known = self.runner.start(sequence)
            self.scheduler.append(sequence, known, sequence.started)

    def _draft(self, step: Step) -> Drafts:
        """Propose draft tokens for a step, as far as there are cells to try them."""
        drafts = self.runner.draft(step, self.scheduler.draft_capacity(step))
        if not drafts:
            return drafts
        count = sum(map(len, drafts.values()))
        return drafts if self.scheduler.reserve_drafts(count) else {}
