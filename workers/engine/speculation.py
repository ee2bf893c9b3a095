"""Speculative decoding: a step decodes draft tokens too, and keeps those that are accepted.

Every token is still drawn from the model's own logits by the request's own sampler; a draft token
only determines which row is sampled next. So the text is the same with and without drafts, but for
llama.cpp's rounding, which depends on the number of rows of a step.

Draft tokens come from the text itself (prompt lookup) or from a small model with the same
vocabulary.

Whether drafts pay is measured. A step of a few rows may cost several times as much as one of a
single row, or hardly more: that depends on machine, model and threads. (Q8_0 on two x86 cores: two
rows 3.9 times as much, 17 rows 9 times.) So steps with drafts are compared with those without. The
time they gain is saved as credit, up to a bound; the time they lose is taken from it; and without
credit there are no drafts until steps without them have paid for the next one.
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

DRAFT_PREFILL = 256
"""Tokens of prompts that the draft model reads in a step; a sequence not read to its end has no
draft."""

Drafts = dict[Sequence, list[int]]
"""Draft tokens of the sequences that have some."""


class DraftModel:
    """A small model that follows the text of every slot in its own context, greedily."""

    def __init__(self, model: Model, context: Context, main: Model, threads: int) -> None:
        """Use at most `threads` threads.

        Raises LoadError for a vocabulary that is not the main model's.
        """
        if model.n_vocab != main.n_vocab or any(
            model.token_text(token) != main.token_text(token) for token in range(model.n_vocab)
        ):
            raise LoadError("the draft model has another vocabulary than the model")
        self._model = model
        self._context = context
        self._batch = Batch(DRAFT_PREFILL)
        self._threads = ThreadTuner(threads, threads)
        self._greedy = Sampler()
        self._greedy.add("greedy")
        self._read: dict[int, list[int]] = {}
        """Tokens in the cache, by slot."""

    def propose(self, requests: list[tuple[Sequence, int]]) -> list[list[int]]:
        """As Drafter."""
        drafts: list[list[int]] = [[] for _ in requests]
        rows = self._catch_up([sequence for sequence, _ in requests])
        for depth in range(max(most for _, most in requests)):
            if depth:
                rows = self._go_on(requests, drafts, depth)
            if not rows:
                break
            for place, row in rows.items():
                drafts[place].append(self._greedy.sample(self._context, row))
        return drafts

    def forget(self, sequence: Sequence) -> None:
        """As Drafter. The tokens of the slot stay, for the next sequence may begin alike."""

    def _catch_up(self, sequences: list[Sequence]) -> dict[int, int]:
        """Read new tokens; return the rows of the sequences read to their end, by place."""
        self._batch.clear()
        rows, added = {}, []
        for place, sequence in enumerate(sequences):
            tokens, slot = sequence.tokens, sequence.slot
            read = self._read.setdefault(slot, [])
            common = common_prefix(read, tokens, min(len(read), len(tokens) - 1))
            if common < len(read):
                del read[common:]
                self._context.cut(slot, common)
            new = tokens[common : common + DRAFT_PREFILL - self._batch.size]
            if not new:
                continue
            complete = common + len(new) == len(tokens)
            row = self._batch.add_run(new, common, slot, wanted="last" if complete else "none")
            added.append((read, new))
            if complete:
                rows[place] = row
        return rows if self._decode(added) else {}

    def _go_on(
        self, requests: list[tuple[Sequence, int]], drafts: list[list[int]], depth: int
    ) -> dict[int, int]:
        """Decode the last draft token of sequences with longer drafts; return rows by place."""
        self._batch.clear()
        rows, added = {}, []
        for place, (sequence, most) in enumerate(requests):
            if len(drafts[place]) == depth < most:
                read = self._read[sequence.slot]
                last = drafts[place][-1]
                rows[place] = self._batch.add(last, len(read), sequence.slot)
                added.append((read, [last]))
        return rows if self._decode(added) else {}

    def _decode(self, added: list[tuple[list[int], list[int]]]) -> bool:
        """Decode the batch and record the new tokens of each slot; return False without rows."""
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
"""Share of the time in steps without drafts that drafts may lose."""
MAX_CREDIT, MIN_CREDIT = 8.0, -4.0
"""Bounds of the credit, in steps without drafts. The debt is bounded because a step that took far
too long was most likely delayed by something else."""
MAX_UNMEASURED = 64
"""Steps with drafts, after which one without is made for comparison."""
_WEIGHT = 0.1
"""Weight of a new measurement in the moving average."""
_OUTLIER = 2.0
"""Ratio to the average from which a step was delayed by something else."""


class SpeculationBudget:
    """The credit of drafts, for steps with one number of running sequences. Pure."""

    def __init__(self) -> None:
        self._step: float | None = None
        """Seconds of a step without drafts."""
        self._credit = MAX_CREDIT
        self._unmeasured = 0

    @property
    def allows(self) -> bool:
        """True if the next step may have drafts."""
        return self._step is not None and self._credit > 0 and self._unmeasured < MAX_UNMEASURED

    def observe_plain(self, seconds: float) -> None:
        """Record a step without drafts."""
        self._unmeasured = 0
        if self._step is None:
            self._step = seconds
        else:
            seconds = min(seconds, _OUTLIER * self._step)
            self._step += _WEIGHT * (seconds - self._step)
        self._add(SHARE)

    def observe_drafted(self, steps: float, seconds: float) -> None:
        """Record a step with drafts that did the work of `steps` steps without."""
        self._unmeasured += 1
        if self._step:
            self._add(steps - seconds / self._step)

    def _add(self, steps: float) -> None:
        self._credit = min(max(self._credit + steps, MIN_CREDIT), MAX_CREDIT)


MAX_DRAFT_TOKENS = 16
"""Draft tokens in a step, of all sequences together: beside many running ones, rows cost more."""
COOLDOWN = 16
"""Tokens to generate before the next draft of a sequence, after drafts without an accepted token.
"""
LONGEST, SHORTEST = 3, 2
"""Lengths of the runs of tokens whose earlier continuation is proposed."""


class Drafter(Protocol):
    """A source of draft tokens."""

    def propose(self, requests: list[tuple[Sequence, int]]) -> list[list[int]]:
        """Return draft tokens for each sequence: at most the number beside it, maybe none."""

    def forget(self, sequence: Sequence) -> None:
        """Forget a sequence that has left its slot."""


class Speculation:
    """The lengths of drafts: for which sequences, and whether any."""

    def __init__(self, drafter: Drafter, longest: int) -> None:
        """Propose at most `longest` tokens for one sequence in a step."""
        self._drafter = drafter
        self._longest = longest
        self._budgets: dict[int, SpeculationBudget] = {}
        """Budgets by the number of running sequences."""
        self._proposing = 0.0
        """Seconds that the proposals of this step took."""

    def propose(self, running: list[Sequence], capacity: int) -> Drafts:
        """Return draft tokens for the next step, `capacity` in all at most."""
        self._proposing = 0.0
        budget = self._budgets.setdefault(len(running), SpeculationBudget())
        if not budget.allows:
            return {}
        # Equal shares, of the length that each sequence's acceptance suggests.
        share = min(capacity, MAX_DRAFT_TOKENS) // max(len(running), 1)
        requests = []
        for sequence in running:
            left = sequence.limit - sequence.generated - 1
            draft = sequence.draft
            if draft.cooldown > 0:
                draft.cooldown -= 1
            elif min(left, share) > 0:
                requests.append((sequence, min(left, share, max(draft.length, 1), self._longest)))
        if not requests:
            return {}
        began = time.perf_counter()
        drafts = self._drafter.propose(requests)
        self._proposing = time.perf_counter() - began
        return {one: draft for (one, _), draft in zip(requests, drafts, strict=True) if draft}

    def judge(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """Adapt the length of a sequence's next draft to the acceptance of the last one."""
        draft = sequence.draft
        draft.drafted += drafted
        draft.accepted += accepted
        if accepted == drafted:
            draft.length = min(2 * max(draft.length, 1), self._longest)
        elif accepted == 0:
            draft.length //= 2
            draft.cooldown = 0 if draft.length else COOLDOWN
        else:
            draft.length = max(accepted, 1)

    def observe(self, running: int, drafted: int, sampled: int, seconds: float) -> None:
        """Record a step of `running` sequences and nothing else, which sampled `sampled` tokens."""
        budget = self._budgets.setdefault(running, SpeculationBudget())
        if drafted:
            budget.observe_drafted(sampled / running, seconds + self._proposing)
        else:
            budget.observe_plain(seconds)

    def forget(self, sequence: Sequence) -> None:
        """Forget a sequence that has left its slot."""
        self._drafter.forget(sequence)


class PromptLookup:
    """A drafter that proposes the earlier continuation of the last few tokens."""

    def __init__(self) -> None:
        self._indices: dict[Sequence, Followers] = {}

    def propose(self, requests: list[tuple[Sequence, int]]) -> list[list[int]]:
        """As Drafter."""
        return [
            self._indices.setdefault(sequence, Followers()).find(sequence.tokens, most)
            for sequence, most in requests
        ]

    def forget(self, sequence: Sequence) -> None:
        """As Drafter."""
        self._indices.pop(sequence, None)


class Followers:
    """An index of the latest end of each short run of tokens in one growing text."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def find(self, tokens: Tokens[int], most: int) -> list[int]:
        """Return at most `most` tokens that followed an earlier occurrence of the last ones."""
        for end in range(max(self._indexed, SHORTEST), len(tokens)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._ends[tuple(tokens[end - length : end])] = end
        self._indexed = len(tokens)
        for length in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
            found = self._ends.get(tuple(tokens[-length:]))
            if found is not None:
                return list(tokens[found : found + most])
        return []
