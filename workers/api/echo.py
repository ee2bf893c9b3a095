"""Prompts that are told back, and how likely the model finds them.

The engine computes only the logits it draws from. So a prompt whose probabilities are asked for
is read once more, on a small context of its own, piece by piece between the engine's steps:
streams go on meanwhile.
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
"""Tokens of a step: each needs a row of logits."""


async def echoes(
    worker: WorkerService, prompts: list[list[int]], alternatives: int | None, copies: int
) -> list[Echo]:
    """Each prompt, `copies` times; with what is told of its tokens unless `alternatives` is None.

    Raises ApiError 400 for one that the context does not hold.
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
        told: list[TokenLogprobs] = []
        if alternatives is not None:
            if len(tokens) > worker.engine.longest_sequence:
                raise exceeds_context(len(tokens), worker.engine.longest_sequence)
            told = await _read(worker, tokens, first, alternatives)
        found += [Echo(text, told)] * copies
    return found


def _first_shown(model: Model, tokens: list[int]) -> int:
    """All but the beginning-of-text that the tokenizer puts before a prompt."""
    return 1 if model.adds_bos and tokens and tokens[0] == model.bos else 0


async def _read(
    worker: WorkerService, tokens: list[int], first: int, alternatives: int
) -> list[TokenLogprobs]:
    reader = _Reader(worker, tokens, alternatives)
    try:  # a client that goes at any moment leaves nothing behind
        await worker.on_engine(reader.begin)
        if first == 0 and tokens:
            await worker.on_engine(lambda: reader.tell(tokens[0], None, []))
        while not reader.done:
            await worker.on_engine(reader.step)
        return reader.told
    finally:
        await worker.on_engine(reader.free)


class _Reader:
    """One prompt being read. The engine thread's own."""

    def __init__(self, worker: WorkerService, tokens: list[int], alternatives: int) -> None:
        self._worker, self._model = worker, worker.model
        self._alternatives = alternatives
        self._held: tuple[Context, Probabilities] | None = None
        """What llama.cpp has memory for."""
        self._batch = Batch(CHUNK)
        self._tokens = tokens
        self._read = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0
        self.told: list[TokenLogprobs] = []

    @property
    def done(self) -> bool:
        """Whether all of it has been told; the last token tells only of what would follow."""
        return self._read >= len(self._tokens) - 1

    def begin(self) -> None:
        """Takes the memory. Raises LoadError."""
        options = replace(
            self._worker.engine.options,
            n_ctx=len(self._tokens) + CHUNK,
            n_batch=CHUNK,
            n_ubatch=CHUNK,
            n_seq_max=CHUNK,  # which is how many rows of logits there are
        )
        context = Context(self._model, options, self._worker.log)
        self._held = context, Probabilities(self._model.n_vocab, self._alternatives)

    def step(self) -> None:
        """Reads on. Raises RuntimeError if llama.cpp fails."""
        if self._held is None:
            raise RuntimeError("a prompt can't be read before it has begun")
        context, probabilities = self._held
        chunk = self._tokens[self._read : min(self._read + CHUNK, len(self._tokens) - 1)]
        self._batch.clear()
        self._batch.add_run(chunk, self._read, 0, wanted="all")
        code = context.decode(self._batch)
        if code != 0:
            raise RuntimeError(f"llama.cpp could not read the prompt (code {code})")
        for row in range(len(chunk)):
            token = self._tokens[self._read + row + 1]
            self.tell(token, *probabilities.of(context, row, token))
        self._read += len(chunk)

    def free(self) -> None:
        """Gives its memory back, if it has any."""
        for held in self._held or ():
            held.free()
        self._held = None

    def tell(self, token: int, logprob: float | None, top: list[tuple[int, float]]) -> None:
        """Notes the prompt's next token."""
        spelled = self._model.spelled(token)
        self.told.append(
            TokenLogprobs(token, spelled, logprob, spell(self._model, top), self._length)
        )
        self._length += len(self._decoder.decode(spelled))
