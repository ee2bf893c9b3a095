"""Guessing tokens ahead: a step decodes several of a sequence, and keeps those that were right.

Every token is still drawn from the model's own logits by the request's own sampler; a guess only
says which row to look at next. So what is generated is the same with and without, but for
llama.cpp's rounding, which depends on how many rows a step has.

Guesses of a small model with the same vocabulary. The engine thread's own.

Whether guessing ahead pays. Pure: it is told what steps took, and what they brought.

A step of a few rows may cost several times as much as one of a single row, or hardly more: that
depends on machine, model and threads. (Q8_0 on two x86 cores: two rows 3.9 times as much, 17 rows
9 times.) So steps with guesses are held against those without. What they gain is put by, up to a
bound; what they lose is taken from there; and when nothing is left, there are no guesses until
the steps without them have paid for the next one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Tokens
from typing import Protocol

from workers.engine.prefix_cache import common_prefix
from workers.engine.sequence import Sequence
from workers.engine.threads import ThreadTuner
from workers.llama.context import Batch, Context
from workers.llama.model import LoadError, Model
from workers.llama.sampler import Sampler

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
        self._threads = ThreadTuner(threads, threads)
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


SHARE = 0.01
"""Of the time in steps without guesses, what guesses may lose."""
MOST_CREDIT, LEAST_CREDIT = 8.0, -4.0
"""What may be put by, and what may be owed, counted in steps without guesses. No more is owed, for
a step that took far too long was most likely held up by something else."""
UNMEASURED = 64
"""Steps with guesses until there is one without, to be held against."""
_WEIGHT = 0.1
"""Of a new measurement in the moving average."""
_OUTLIER = 2.0
"""A step that took so many times as long was held up by something else."""


class SpeculationBudget:
    """For steps with one number of running sequences."""

    def __init__(self) -> None:
        self._step: float | None = None
        """Seconds of a step without guesses."""
        self._credit = MOST_CREDIT
        self._unmeasured = 0

    @property
    def allows(self) -> bool:
        """Whether the next step may have guesses."""
        return self._step is not None and self._credit > 0 and self._unmeasured < UNMEASURED

    def plain(self, seconds: float) -> None:
        """A step without guesses took so long."""
        self._unmeasured = 0
        if self._step is None:
            self._step = seconds
        else:
            seconds = min(seconds, _OUTLIER * self._step)
            self._step += _WEIGHT * (seconds - self._step)
        self._add(SHARE)

    def guessed(self, steps: float, seconds: float) -> None:
        """A step with guesses took so long, and did what `steps` do without."""
        self._unmeasured += 1
        if self._step:
            self._add(steps - seconds / self._step)

    def _add(self, steps: float) -> None:
        self._credit = min(max(self._credit + steps, LEAST_CREDIT), MOST_CREDIT)


GUESSES = 16
"""Guessed tokens in a step, of all sequences together: where many run, rows are no longer cheap."""
PAUSE = 16
"""Tokens to wait before guessing again for a sequence for which every guess was wrong."""
LONGEST, SHORTEST = 3, 2
"""Tokens that must have come before for what followed them to be guessed."""


class Drafter(Protocol):
    """Makes guesses."""

    def propose(self, wishes: list[tuple[Sequence, int]]) -> list[list[int]]:
        """For each sequence, at most so many tokens that may follow it; maybe none."""

    def forget(self, sequence: Sequence) -> None:
        """It has left its slot."""


class Speculation:
    """Decides how far to guess for whom, and whether at all."""

    def __init__(self, drafter: Drafter, most: int) -> None:
        """`most`: tokens guessed for one sequence in a step."""
        self._drafter = drafter
        self._most = most
        self._balances: dict[int, SpeculationBudget] = {}
        """By how many are running."""
        self._proposing = 0.0
        """Seconds that the guesses of this step took."""

    def guesses(self, running: list[Sequence], room: int) -> dict[Sequence, list[int]]:
        """What to try for each, `room` tokens at most; who is not in it is not guessed for."""
        self._proposing = 0.0
        balance = self._balances.setdefault(len(running), SpeculationBudget())
        if not balance.allows:
            return {}
        share = min(room, GUESSES) // max(len(running), 1)
        wishes = []
        for sequence in running:
            left = sequence.limit - sequence.generated - 1
            draft = sequence.draft
            if draft.pause > 0:
                draft.pause -= 1
            elif min(left, share) > 0:
                wishes.append((sequence, min(left, share, max(draft.reach, 1), self._most)))
        if not wishes:
            return {}
        began = time.perf_counter()
        proposals = self._drafter.propose(wishes)
        self._proposing = time.perf_counter() - began
        return {one: guess for (one, _), guess in zip(wishes, proposals, strict=True) if guess}

    def judge(self, sequence: Sequence, guessed: int, right: int) -> None:
        """Of `guessed` tokens the first `right` ones were: guess further next time, or less far."""
        draft = sequence.draft
        draft.guessed += guessed
        draft.right += right
        if right == guessed:
            draft.reach = min(2 * max(draft.reach, 1), self._most)
        elif right == 0:
            draft.reach //= 2
            draft.pause = 0 if draft.reach else PAUSE
        else:
            draft.reach = max(right, 1)

    def settle(self, running: int, guessed: int, drawn: int, seconds: float) -> None:
        """A step of `running` sequences and nothing else, with so many guesses, took `seconds` and
        brought `drawn` tokens."""
        balance = self._balances.setdefault(running, SpeculationBudget())
        if guessed:
            balance.guessed(drawn / running, seconds + self._proposing)
        else:
            balance.plain(seconds)

    def forget(self, sequence: Sequence) -> None:
        """It has left its slot."""
        self._drafter.forget(sequence)


class PromptLookup:
    """Guesses that what followed the last few tokens before will follow them again."""

    def __init__(self) -> None:
        self._seen: dict[Sequence, Followers] = {}

    def propose(self, wishes: list[tuple[Sequence, int]]) -> list[list[int]]:
        """As Drafter promises."""
        return [
            self._seen.setdefault(sequence, Followers()).find(sequence.tokens, most)
            for sequence, most in wishes
        ]

    def forget(self, sequence: Sequence) -> None:
        """As Drafter promises."""
        self._seen.pop(sequence, None)


class Followers:
    """Where in one growing text each short run of tokens ended last."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def find(self, tokens: Tokens[int], most: int) -> list[int]:
        """What followed the last tokens when they came before, `most` at most."""
        for end in range(max(self._indexed, SHORTEST), len(tokens)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._ends[tuple(tokens[end - length : end])] = end
        self._indexed = len(tokens)
        for length in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
            found = self._ends.get(tuple(tokens[-length:]))
            if found is not None:
                return list(tokens[found : found + most])
        return []
