"""Echoed prompts and their log-probabilities.

The engine computes only the logits it samples from. So a prompt whose log-probabilities are
requested is read a second time in a small separate context, chunk by chunk between the engine's
steps, while streams continue.
"""

from __future__ import annotations

import codecs
from dataclasses import replace

from workers.api.logprobs import TokenLogprobs, spell
from workers.api.openai_responses import Echo
from workers.errors import exceeds_context
from workers.llama.context import Batch, Context
from workers.llama.model import Model
from workers.llama.sampler import Probabilities
from workers.service import WorkerService, run_with_backoff

CHUNK = 32
"""Tokens in a step: each needs a row of logits."""


async def echoes(
    worker: WorkerService, prompts: list[list[int]], alternatives: int | None, copies: int
) -> list[Echo]:
    """Return each prompt `copies` times, with its log-probabilities unless `alternatives` is None.

    Raises ApiError 400 for a prompt longer than the context.
    """
    found = []
    firsts = [_first_shown(worker.model, tokens) for tokens in prompts]
    texts = await run_with_backoff(
        sum(map(len, prompts)),
        lambda: [
            worker.model.text(tokens[first:]) for tokens, first in zip(prompts, firsts, strict=True)
        ],
    )
    for tokens, first, text in zip(prompts, firsts, texts, strict=True):
        logprobs: list[TokenLogprobs] = []
        if alternatives is not None:
            if len(tokens) > worker.engine.longest_sequence:
                raise exceeds_context(len(tokens), worker.engine.longest_sequence)
            logprobs = await _read(worker, tokens, first, alternatives)
        found += [Echo(text, logprobs)] * copies
    return found


def _first_shown(model: Model, tokens: list[int]) -> int:
    """Return the first token to show: the tokenizer's beginning-of-text token is left out."""
    return 1 if model.adds_bos and tokens and tokens[0] == model.bos else 0


async def _read(
    worker: WorkerService, tokens: list[int], first: int, alternatives: int
) -> list[TokenLogprobs]:
    reader = _Reader(worker, tokens, alternatives)
    try:  # the context is freed whenever the client disconnects
        await worker.on_engine(reader.begin)
        if first == 0 and tokens:
            await worker.on_engine(lambda: reader.record(tokens[0], None, []))
        while not reader.done:
            await worker.on_engine(reader.step)
        return reader.logprobs
    finally:
        await worker.on_engine(reader.free)


class _Reader:
    """A prompt being scored. Used on the engine's thread."""

    def __init__(self, worker: WorkerService, tokens: list[int], alternatives: int) -> None:
        self._worker, self._model = worker, worker.model
        self._alternatives = alternatives
        self._buffers: tuple[Context, Probabilities] | None = None
        """Memory allocated by llama.cpp; None before `begin` and after `free`."""
        self._batch = Batch(CHUNK)
        self._tokens = tokens
        self._read = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0
        self.logprobs: list[TokenLogprobs] = []

    @property
    def done(self) -> bool:
        """True if every token is scored. The logits of the last one would score its successor."""
        return self._read >= len(self._tokens) - 1

    def begin(self) -> None:
        """Allocate the context. Raises LoadError."""
        options = replace(
            self._worker.engine.options,
            n_ctx=len(self._tokens) + CHUNK,
            n_batch=CHUNK,
            n_ubatch=CHUNK,
            n_seq_max=CHUNK,  # sets the number of rows of logits
        )
        context = Context(self._model, options, self._worker.log)
        self._buffers = context, Probabilities(self._model.n_vocab, self._alternatives)

    def step(self) -> None:
        """Compute the next chunk. Raises RuntimeError if llama.cpp fails."""
        if self._buffers is None:
            raise RuntimeError("the prompt's context is not allocated")
        context, probabilities = self._buffers
        chunk = self._tokens[self._read : min(self._read + CHUNK, len(self._tokens) - 1)]
        self._batch.clear()
        self._batch.add_run(chunk, self._read, 0, wanted="all")
        code = context.decode(self._batch)
        if code != 0:
            raise RuntimeError(f"llama.cpp could not read the prompt (code {code})")
        for row in range(len(chunk)):
            token = self._tokens[self._read + row + 1]
            self.record(token, *probabilities.of(context, row, token))
        self._read += len(chunk)

    def free(self) -> None:
        """Free the context, if it is allocated."""
        for buffer in self._buffers or ():
            buffer.free()
        self._buffers = None

    def record(self, token: int, logprob: float | None, top: list[tuple[int, float]]) -> None:
        """Append the prompt's next token."""
        spelled = self._model.spelled(token)
        self.logprobs.append(
            TokenLogprobs(token, spelled, logprob, spell(self._model, top), self._length)
        )
        self._length += len(self._decoder.decode(spelled))
