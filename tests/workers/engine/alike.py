"""Answers alone and in company: the same, or another where two tokens were as good as equal."""

from __future__ import annotations

from typing import Any

from tests.workers.process import WorkerProcess

NEAR = 0.1
"""Logits this close may change places: llama.cpp computes one row by other code than several, and
sums over the cells of all requests as they lie. Of 24 answers of bard, 0.03 at most without flash
attention, and 0.09 with it."""


def differs_by_rounding(worker: WorkerProcess, body: dict[str, Any], other: str) -> bool:
    """Whether what the worker says to `body` alone and `other` part, if they do, at two tokens of
    which one was as likely as the other. Greedy, without penalties.

    It may say `other` too by now: what is kept in the cache moves a request's cells.
    """
    choice = worker.post("/v1/completions", {**body, "logprobs": 5})["choices"][0]
    told, said = choice["logprobs"], ""
    for token, top in zip(told["tokens"], told["top_logprobs"], strict=True):
        if not other.startswith(said + token):
            best = max(top.values())
            return any(
                other.startswith(said + another) and best - logprob < NEAR
                for another, logprob in top.items()
                if another != token
            )
        said += token
    return said == other
