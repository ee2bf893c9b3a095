"""Guesses of a small model with the same vocabulary. The engine thread's own."""

from __future__ import annotations

import time

from workers.binding import LoadError, Model
from workers.binding_context import Batch, Context
from workers.binding_sampler import Sampler
from workers.cache import common_prefix
from workers.sequence import Sequence
from workers.thread_pace import ThreadPace

READ_AHEAD = 256
"""Tokens of prompts that the small model reads in a step; who is not through is not guessed for."""


class DraftModel:
    """Follows every slot's text in a context of its own, where it goes on greedily."""

    def __init__(self, model: Model, context: Context, main: Model, threads: int) -> None:
        """At most so many `threads`. Raises LoadError for a vocabulary that is not the main
        model's."""
        if model.n_vocab != main.n_vocab or any(
            model.token_text(token) != main.token_text(token) for token in range(model.n_vocab)
        ):
            raise LoadError("the draft model has another vocabulary than the model")
        self._model = model
        self._context = context
        self._batch = Batch(READ_AHEAD)
        self._threads = ThreadPace(threads, threads)
        self._greedy = Sampler()
        self._greedy.add("greedy")
        self._read: dict[int, list[int]] = {}
        """For each slot, the tokens in the cache."""

    def propose(self, wishes: list[tuple[Sequence, int]]) -> list[list[int]]:
        """As Drafter promises."""
        guesses: list[list[int]] = [[] for _ in wishes]
        rows = self._catch_up([sequence for sequence, _ in wishes])
        for depth in range(max(most for _, most in wishes)):
            if depth:
                rows = self._go_on(wishes, guesses, depth)
            if not rows:
                break
            for place, row in rows.items():
                guesses[place].append(self._greedy.sample(self._context, row))
        return guesses

    def forget(self, sequence: Sequence) -> None:
        """As Drafter promises. What is in the slot stays, for the next one may begin alike."""

    def _catch_up(self, sequences: list[Sequence]) -> dict[int, int]:
        """Reads what is new. The rows of those that are through, by their place."""
        self._batch.clear()
        rows, added = {}, []
        for place, sequence in enumerate(sequences):
            tokens, slot = sequence.tokens, sequence.slot
            read = self._read.setdefault(slot, [])
            common = common_prefix(read, tokens, min(len(read), len(tokens) - 1))
            if common < len(read):
                del read[common:]
                self._context.cut(slot, common)
            new = tokens[common : common + READ_AHEAD - self._batch.size]
            if not new:
                continue
            through = common + len(new) == len(tokens)
            row = self._batch.add_run(new, common, slot, wanted="last" if through else "none")
            added.append((read, new))
            if through:
                rows[place] = row
        return rows if self._decode(added) else {}

    def _go_on(
        self, wishes: list[tuple[Sequence, int]], guesses: list[list[int]], depth: int
    ) -> dict[int, int]:
        """Decodes the last guess of everybody who wants more. Their rows, by their place."""
        self._batch.clear()
        rows, added = {}, []
        for place, (sequence, most) in enumerate(wishes):
            if len(guesses[place]) == depth < most:
                read = self._read[sequence.slot]
                last = guesses[place][-1]
                rows[place] = self._batch.add(last, len(read), sequence.slot)
                added.append((read, [last]))
        return rows if self._decode(added) else {}

    def _decode(self, added: list[tuple[list[int], list[int]]]) -> bool:
        if self._batch.size == 0:
            return False
        size = self._batch.size
        threads = self._threads.choose(size)
        self._context.use_threads(threads)
        began = time.perf_counter()
        code = self._context.decode(self._batch)
        self._threads.observe(size, threads, time.perf_counter() - began)
        if code != 0:  # no cells left: begin anew
            for slot in self._read:
                self._context.forget(slot)
            self._read.clear()
            return False
        for read, new in added:
            read.extend(new)
        return True
