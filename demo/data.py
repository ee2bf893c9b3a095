"""Training texts before tokenization: reading, division, turns of talk, words."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

# Typeset quotes become keyboard quotes, so that the training text matches typed prompts.
STRAIGHT = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"'})
OPENING = re.compile(r"(?<![^\s(\-])'")
# From a long run of spaces a model learns only to continue it.
INDENT = re.compile(r"^[ *]{2,}", re.MULTILINE)
WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
SENTENCE_END = re.compile(r"(?<=[.!?;])['\")]*\s+")
HELD_SHARE = 0.05
LONGEST_ANSWER = 400

SYSTEM_PROMPTS = (
    "Answer in the manner of the book.",
    "You are a helpful assistant.",
    "Tell me what happens next.",
    "Be brief.",
)


@dataclass(frozen=True)
class Corpus:
    """Text with a piece held out of its middle: training sees `before` and `after` only."""

    before: str
    held: str
    after: str

    @property
    def pieces(self) -> tuple[str, str]:
        """Training pieces, the two sides of the held-out gap kept apart."""
        return self.before, self.after

    @property
    def words(self) -> list[str]:
        """Every word of the training pieces once, lower-cased and sorted."""
        return sorted({word for piece in self.pieces for word in words_of(piece)})


@dataclass(frozen=True)
class Turn:
    """Speech of a play, or paragraph of a story, which has no speaker."""

    speaker: str
    words: str


def read_text(path: Path) -> str:
    """Return the text with straight quotes, verse indented by one space, no rows of asterisks.

    Exits with one sentence if the file can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SystemExit(f"cannot read the text {path}: {error.strerror}") from error
    return INDENT.sub(" ", text.translate(STRAIGHT))


def typeset(text: str) -> str:
    """Return the text with curled single quotes, as in print or from a telephone."""
    return OPENING.sub("‘", text).replace("'", "’")


def divide(text: str, share: float = HELD_SHARE) -> Corpus:
    """Hold out `share` of the text, from the first paragraph that begins after its middle."""
    start = _paragraph_after(text, len(text) // 2)
    stop = _paragraph_after(text, start + int(len(text) * share))
    return Corpus(text[:start], text[start:stop], text[stop:])


def _paragraph_after(text: str, offset: int) -> int:
    """Return the start of the first paragraph at or after the offset."""
    gap = re.compile(r"\n\n+(?=\S)").search(text, offset)
    return gap.end() if gap else len(text)


def words_of(text: str) -> list[str]:
    """Return the words of a text, lower-cased, in order; inner apostrophes belong to them."""
    return [word.lower() for word in WORD.findall(text.translate(STRAIGHT))]


def turns_of(text: str) -> list[Turn]:
    """Return the text as turns, in order. Verse keeps its line breaks, paragraphs lose theirs."""
    turns = []
    for paragraph in re.split(r"\n\s*\n", text):
        first, _, rest = paragraph.strip().partition("\n")
        if first.endswith(":") and len(first) < 40 and rest:
            turns.append(Turn(first[:-1], rest.strip()))
        elif "\n " in paragraph:
            turns.append(Turn("", paragraph.strip()))
        elif paragraph.strip():
            turns.append(Turn("", " ".join(paragraph.split())))
    return turns


def shorten(text: str, longest: int) -> str:
    """Return the leading sentences that fit into `longest` characters, at least one."""
    end = 0
    for gap in SENTENCE_END.finditer(text):
        if end and gap.start() > longest:
            break
        end = gap.start()
    return text if len(text) <= longest or not end else text[:end]


def conversation(turns: list[Turn], start: int, rng: random.Random) -> list[dict[str, str]]:
    """Return a chat with the turns from `start` on, alternately as user and assistant.

    Sometimes a system message comes first, which may name the assistant's part. Sometimes a user's
    message is one sentence only, as many real ones are.
    """
    messages = []
    speaker = turns[start + 1].speaker if start + 1 < len(turns) else ""
    if rng.random() < 0.3:
        named = speaker and rng.random() < 0.7
        system = f"You are {speaker}." if named else rng.choice(SYSTEM_PROMPTS)
        messages.append({"role": "system", "content": system})
    for index, turn in enumerate(turns[start : start + 24]):
        if index % 2:
            content = shorten(turn.words, LONGEST_ANSWER)
            messages.append({"role": "assistant", "content": content})
        else:
            longest = 1 if rng.random() < 0.4 else LONGEST_ANSWER
            messages.append({"role": "user", "content": shorten(turn.words, longest)})
    return messages
