"""Guessing tokens ahead: a step decodes several of a sequence, and keeps those that were right.

Every token is still drawn from the model's own logits by the request's own sampler; a guess only
says which row to look at next. So what is generated is the same with and without, but for
llama.cpp's rounding, which depends on how many rows a step has.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Tokens
from typing import Protocol

from workers.guess_balance import GuessBalance
from workers.sequence import Sequence

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
        self._balances: dict[int, GuessBalance] = {}
        """By how many are running."""
        self._proposing = 0.0
        """Seconds that the guesses of this step took."""

    def guesses(self, running: list[Sequence], room: int) -> dict[Sequence, list[int]]:
        """What to try for each, `room` tokens at most; who is not in it is not guessed for."""
        self._proposing = 0.0
        balance = self._balances.setdefault(len(running), GuessBalance())
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
        balance = self._balances.setdefault(running, GuessBalance())
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
