"""Comparison of answers that may differ where two tokens are as good as equal."""

from __future__ import annotations

from typing import Any

from tests.workers.process import WorkerProcess

NEAR = 0.1
"""Difference of two logits that rounding may reverse: llama.cpp computes one row by other code than
several, and sums over the cells of all requests as they lie. Of 24 answers of bard, 0.03 at most
without flash attention, and 0.09 with it."""


def differs_by_rounding(worker: WorkerProcess, body: dict[str, Any], other: str) -> bool:
    """Return True if the worker's answer to `body` differs from `other` by rounding, or not at all.

    That is so if they part at two tokens of which one was as likely as the other. For greedy
    requests without penalties. The worker may answer `other` too by now: cached sequences move a
    request's cells.
    """
    choice = worker.post("/v1/completions", {**body, "logprobs": 5})["choices"][0]
    logprobs, text = choice["logprobs"], ""
    for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True):
        if not other.startswith(text + token):
            best = max(top.values())
            return any(
                other.startswith(text + another) and best - logprob < NEAR
                for another, logprob in top.items()
                if another != token
            )
        text += token
    return text == other
