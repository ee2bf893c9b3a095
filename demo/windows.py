"""Windows of plain text and of chat as token ids, the input of training steps."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from demo.data import Corpus, Turn, conversation, turns_of, typeset
from demo.tokenizer import BEGIN_ID, Vocabulary, render

IGNORED = -100
TOKENS_PER_STEP = 2048
LENGTHS = (256, 256, 512, 1024)
CHAT_SHARE = 0.4
# Some devices type curled quotes: a model trained without them would answer such text badly.
TYPESET_SHARE = 0.1


class Windows:
    """Sampler of windows from the training pieces of a corpus, never across the held-out gap."""

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary, seed: int) -> None:
        self._vocabulary = vocabulary
        self._rng = random.Random(seed)
        self._plain = [vocabulary.encode(piece) for piece in corpus.pieces]
        self._typeset = [vocabulary.encode(typeset(piece)) for piece in corpus.pieces]
        self._talk: list[list[Turn]] = [turns_of(piece) for piece in corpus.pieces]

    def _piece(self) -> int:
        """Draw the index of a piece, weighted by its size."""
        sizes = [len(ids) for ids in self._plain]
        return self._rng.choices(range(len(sizes)), sizes)[0]

    def plain(self, length: int) -> list[int]:
        """Return <|begin|> and running text from a random position."""
        pieces = self._typeset if self._rng.random() < TYPESET_SHARE else self._plain
        ids = pieces[self._piece()]
        start = self._rng.randrange(max(1, len(ids) - length))
        return [BEGIN_ID, *ids[start : start + length]]

    def chat(self, length: int) -> list[int]:
        """Return <|begin|> and a conversation from a random position, cut at the window's end."""
        turns = self._talk[self._piece()]
        start = self._rng.randrange(max(1, len(turns) - 4))
        text = render(conversation(turns, start, self._rng))
        if self._rng.random() < TYPESET_SHARE:
            text = typeset(text)
        return [BEGIN_ID, *self._vocabulary.encode(text)][: length + 1]

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield without end inputs and targets, both (batch, time), 2,048 tokens together.

        Lengths vary up to the full context, so that every position is learnt.
        """
        while True:
            length = self._rng.choice(LENGTHS)
            rows = [
                self.chat(length) if self._rng.random() < CHAT_SHARE else self.plain(length)
                for _ in range(TOKENS_PER_STEP // length)
            ]
            yield pad(rows, length)


def pad(rows: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
    """Return rows of up to length + 1 ids as inputs and targets; padding is ignored by the loss."""
    inputs = torch.full((len(rows), length), BEGIN_ID)
    targets = torch.full((len(rows), length), IGNORED)
    for index, row in enumerate(rows):
        ids = torch.tensor(row)
        inputs[index, : len(row) - 1] = ids[:-1]
        targets[index, : len(row) - 1] = ids[1:]
    return inputs, targets


def held_windows(ids: list[int], context: int) -> list[tuple[Tensor, Tensor]]:
    """Return held-out ids in windows: each has <|begin|> and up to context - 1 ids."""
    step = context - 1
    chunks = [[BEGIN_ID, *ids[i : i + step]] for i in range(0, len(ids), step)]
    return [pad([chunk], len(chunk) - 1) for chunk in chunks]
