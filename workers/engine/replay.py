"""Replay: continuing an answer that another process has begun, from its known tokens.

They are computed as a prompt is; but the request's sampler processes the logits of each, as it did
then, and accepts the token that was drawn. So its random numbers, its penalties and its grammar
reach the state they had, and the answer continues as it would have there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from workers.engine.sequence import Sequence, Step
from workers.llama.context import Batch, Context
from workers.llama.model import Model
from workers.llama.sampler import Candidates

SINGLE_SECONDS = 5.0
"""Seconds for which known tokens are decoded one by one, as they were then, to be rounded as they
were then: 100 drawn answers of a random model continued as they would have; with two or more at a
time 16 did not. The rest is read in pieces, so that the client does not wait as long again."""
PIECE = 32
"""Tokens of a piece. From 64 rows on, flash attention rounds very differently: of 90 greedy answers
of bard 5 continued otherwise after pieces of 64 or 128 tokens, and none after 1 to 63."""


@dataclass
class Replay:
    """The rows of a sequence in one step that are replayed."""

    sequence: Sequence
    row: int
    """The first row, whose logits the first known token was drawn from."""
    known: list[int]
    """The known tokens that follow the first row."""
    draws: bool
    """True if another token is drawn after the known ones."""


class Replayer:
    """Plans, fills and plays replays. Used by the engine thread alone."""

    def __init__(self, model: Model, context: Context, rows: int) -> None:
        """Replay with at most `rows` rows of a step that may have logits."""
        self._n_vocab = model.n_vocab
        self._context = context
        self._rows = rows
        self._candidates: Candidates | None = None
        self.single_seconds = SINGLE_SECONDS

    def bounded(self, step: Step) -> Step:
        """Return `step` with fewer known tokens of a sequence where it would have too many."""
        if not any(sequence.resumed for sequence, _ in step):
            return step
        spare = self._rows - len(step)  # one each is for the token to come
        bounded: Step = []
        for sequence, count in step:
            if sequence.resumed:
                count = self._count(sequence, count, spare)  # noqa: PLW2901
                spare -= max(count - _silent(sequence) - 1, 0)
            bounded.append((sequence, count))
        return bounded

    def _count(self, sequence: Sequence, count: int, spare: int) -> int:
        """Return its tokens in a step that has `spare` rows with logits left over."""
        prompt_left = sequence.prompt_length - sequence.cached
        if prompt_left > 0:
            return min(count, prompt_left)  # a prompt is read in the pieces in which it was read
        if len(sequence.resumed) <= -prompt_left:
            return count
        now = time.monotonic()
        sequence.replay_started = sequence.replay_started or now
        if sequence.isolated or now - sequence.replay_started < self.single_seconds:
            return 1
        rows = _silent(sequence) + 1 + max(spare, 0) if sequence.pending_replay else PIECE
        return min(count, PIECE, rows)

    def fill(self, batch: Batch, sequence: Sequence, count: int) -> Replay | None:
        """Write the next `count` tokens into a batch; return the replay of their rows, if any."""
        cached, silent = sequence.cached, min(_silent(sequence), count)
        known = sequence.tokens[cached + silent + 1 : cached + count + 1]
        if silent:
            batch.add_run(sequence.tokens[cached : cached + silent], cached, sequence.seq_id)
        if silent == count:
            return None
        run = [max(token, 0) for token in sequence.tokens[cached + silent : cached + count]]
        last = batch.add_run(run, cached + silent, sequence.seq_id, wanted="all")
        return Replay(sequence, last - len(run) + 1, known, count == sequence.pending)

    def play(self, replay: Replay) -> list[int]:
        """Pass the known tokens to the sampler; return them, and the one drawn after them."""
        sampler = replay.sequence.sampler
        if sampler is None:
            raise RuntimeError("a sequence without a sampler has nothing to replay")
        self._candidates = self._candidates or Candidates(self._n_vocab)
        for place, token in enumerate(replay.known):
            sampler.replay(self._context, replay.row + place, token, self._candidates)
        if not replay.draws:
            return replay.known
        return [*replay.known, sampler.sample(self._context, replay.row + len(replay.known))]


def _silent(sequence: Sequence) -> int:
    """Return the next tokens whose logits are not needed: those that follow are replayed."""
    return max(len(sequence.tokens) - sequence.pending_replay - 1 - sequence.cached, 0)
