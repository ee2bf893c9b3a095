"""Going on with an answer that another process has begun: its tokens are known, and read again.

They are part of what has to be computed, as a prompt is; but the request's sampler looks at the
logits of each, as it did then, and is told of the token that was drawn. So its random numbers,
its penalties and its grammar stand where they stood, and what follows is what would have followed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from workers.engine.sequence import Sequence
from workers.llama.context import Batch, Context
from workers.llama.model import Model
from workers.llama.sampler import Candidates

ALIKE_SECONDS = 5.0
"""So long the known tokens are decoded one by one, as they were then, to be rounded as they were
then: 100 drawn answers of a random model went on as they would have; with two or more at a time 16
did not. What is left after that is read in pieces, lest the client waits as long again."""
PIECE = 32
"""Tokens of a piece. From 64 rows on, flash attention rounds by far more: of 90 greedy answers of
bard 5 went on otherwise after pieces of 64 or 128 tokens, and none after 1 to 63."""


@dataclass
class Replay:
    """A sequence's rows in one step: the known tokens that follow the first ones, and whether
    another is to be drawn after them."""

    sequence: Sequence
    row: int
    known: list[int]
    draws: bool


class Replayer:
    """Plans, writes and plays what is known of answers. The engine thread's own."""

    def __init__(self, model: Model, context: Context, rows: int) -> None:
        """`rows`: how many of a step may have logits."""
        self._n_vocab = model.n_vocab
        self._context = context
        self._rows = rows
        self._candidates: Candidates | None = None
        self.alike_seconds = ALIKE_SECONDS

    def bounded(self, step: list[tuple[Sequence, int]]) -> list[tuple[Sequence, int]]:
        """`step`, with less of what is known where that is too much for it."""
        if not any(sequence.resumed for sequence, _ in step):
            return step
        spare = self._rows - len(step)  # one each is for the token to come
        bound = []
        for sequence, count in step:
            if sequence.resumed:
                count = self._count(sequence, count, spare)  # noqa: PLW2901
                spare -= max(count - _silent(sequence) - 1, 0)
            bound.append((sequence, count))
        return bound

    def _count(self, sequence: Sequence, count: int, spare: int) -> int:
        """How many tokens of it go into a step that has `spare` rows with logits left over."""
        begins = sequence.prompt_length - sequence.cached
        if begins > 0:
            return min(count, begins)  # a prompt is read in the pieces in which it was read
        if len(sequence.resumed) <= -begins:
            return count
        now = time.monotonic()
        sequence.read_again = sequence.read_again or now
        if sequence.isolated or now - sequence.read_again < self.alike_seconds:
            return 1
        room = _silent(sequence) + 1 + max(spare, 0) if sequence.unplayed else PIECE
        return min(count, PIECE, room)

    def fill(self, batch: Batch, sequence: Sequence, count: int) -> Replay | None:
        """Writes the next `count` tokens; what there is to play then, if anything."""
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
        """The known tokens, of which the sampler was told, and the one drawn after them."""
        sampler = replay.sequence.sampler
        if sampler is None:
            raise RuntimeError("there is nobody to be told of what is known")
        self._candidates = self._candidates or Candidates(self._n_vocab)
        for place, token in enumerate(replay.known):
            sampler.replay(self._context, replay.row + place, token, self._candidates)
        if not replay.draws:
            return replay.known
        return [*replay.known, sampler.sample(self._context, replay.row + len(replay.known))]


def _silent(sequence: Sequence) -> int:
    """The next tokens after which the logits are of no interest: what follows has been played."""
    return max(len(sequence.tokens) - sequence.unplayed - 1 - sequence.cached, 0)
