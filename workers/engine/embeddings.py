"""Embeddings and ranking, on a second, small context that is made for the first request.

The generating context can't compute them: pooling is a property of a context, and with it every
token's output would be computed in every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from workers.llama.context import Batch, Context, ContextOptions
from workers.llama.model import LlamaLog, Model, api

SEQUENCES = 16
"""Largest number of inputs in a step."""


@dataclass(eq=False)
class EmbeddingJob:
    """Inputs of one request to embed."""

    inputs: list[list[int]]
    done: Callable[[list[list[float]] | Exception], None]
    """Called once with the result, on the event loop's thread."""
    vectors: list[list[float]] = field(default_factory=list)
    """Finished vectors, in order; of length 1, so that their dot product is their cosine. Scores,
    of a ranking model."""


class Embedder:
    """Computes jobs step by step on the engine's thread, so that streams go on in between."""

    def __init__(self, model: Model, options: ContextOptions, log: LlamaLog) -> None:
        """Make the context. `options.n_ubatch` bounds an input: pooling needs it whole."""
        self._batch = Batch(options.n_ubatch)
        self._capacity = options.n_ubatch
        self._ranks = options.pooling == "rank"
        self._context = Context(model, options, log)

    def step(self, job: EmbeddingJob) -> int:
        """Compute the next inputs of `job` in one batch; return their number.

        Raises RuntimeError if llama.cpp fails.
        """
        self._batch.clear()
        first = len(job.vectors)
        count = 0
        for tokens in job.inputs[first : first + SEQUENCES]:
            if self._batch.size + len(tokens) > self._capacity:
                break
            self._batch.add_run(tokens, 0, count, wanted="all")
            count += 1
        run = self._context.decode if self._context.generates else self._context.encode
        code = run(self._batch)
        if code != 0:
            raise RuntimeError(f"llama.cpp could not compute the embeddings (code {code})")
        for slot in range(count):
            vector = self._context.embedding(slot)
            job.vectors.append(vector if self._ranks else _normalized(vector))
            self._context.forget(slot)
        return count


def _normalized(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector] if length > 0 else vector


def ranking_prompt(model: Model, query: str, document: str) -> list[int]:
    """Return query and document as the tokens that a ranking model reads, as llama-server does.

    By the model's own template if it has one, else `<start>query<end><separator>document<end>`,
    with the markers that its vocabulary uses.
    """
    template: bytes | None = api.llama_model_chat_template(model.handle, b"rerank")
    if template is not None:
        pieces = template.decode("utf-8", "replace").split("{query}")
        text = query.join(piece.replace("{document}", document) for piece in pieces)
        return model.tokenize(text, add_special=True, parse_special=True)
    vocab = model.vocab
    end = [model.eos] if api.llama_vocab_get_add_eos(vocab) else []
    between = [api.llama_vocab_sep(vocab)] if api.llama_vocab_get_add_sep(vocab) else []
    start = [model.bos] if model.adds_bos else []
    query_tokens = model.tokenize(query, add_special=False, parse_special=False)
    text_tokens = model.tokenize(document, add_special=False, parse_special=False)
    return [*start, *query_tokens, *end, *between, *text_tokens, *end]
