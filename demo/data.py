"""The texts: read, divided, cut into turns of talk, and counted into words. No tokens here."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

# Typeset quotes become the ones a keyboard has, so that what users type is what was learnt.
STRAIGHT = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"'})
OPENING = re.compile(r"(?<![^\s(\-])'")
# A long run of spaces teaches a model little but to go on with it.
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
    """A text with a piece held out of its middle: training sees `before` and `after` only."""

    before: str
    held: str
    after: str

    @property
    def pieces(self) -> tuple[str, str]:
        """What is trained on, the two sides of the gap kept apart."""
        return self.before, self.after

    @property
    def words(self) -> list[str]:
        """Every word of the training pieces once, lower-cased and sorted."""
        return sorted({word for piece in self.pieces for word in words_of(piece)})


@dataclass(frozen=True)
class Turn:
    """One speech of a play, or one paragraph of a story (then nobody's: speaker is empty)."""

    speaker: str
    words: str


def read_text(path: Path) -> str:
    """The text with straight quotes, a verse's indent one space wide, and no rows of asterisks.

    One clear sentence if it is not there.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SystemExit(f"cannot read the text {path}: {error.strerror}") from error
    return INDENT.sub(" ", text.translate(STRAIGHT))


def typeset(text: str) -> str:
    """The text with its single quotes curled as a printer or a telephone does."""
    return OPENING.sub("‘", text).replace("'", "’")


def divide(text: str, share: float = HELD_SHARE) -> Corpus:
    """Holds out `share` of the text, from the first paragraph that begins after its half."""
    start = _paragraph_after(text, len(text) // 2)
    stop = _paragraph_after(text, start + int(len(text) * share))
    return Corpus(text[:start], text[start:stop], text[stop:])


def _paragraph_after(text: str, offset: int) -> int:
    """Where the first paragraph at or after the offset begins."""
    gap = re.compile(r"\n\n+(?=\S)").search(text, offset)
    return gap.end() if gap else len(text)


def words_of(text: str) -> list[str]:
    """The words of a text, lower-cased, in order; an apostrophe inside belongs to the word."""
    return [word.lower() for word in WORD.findall(text.translate(STRAIGHT))]


def turns_of(text: str) -> list[Turn]:
    """The text as talk, in order. Verse keeps its lines, the story's paragraphs lose theirs."""
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
    """The leading sentences that fit into `longest` characters, at least one."""
    end = 0
    for gap in SENTENCE_END.finditer(text):
        if end and gap.start() > longest:
            break
        end = gap.start()
    return text if len(text) <= longest or not end else text[:end]


def conversation(turns: list[Turn], start: int, rng: random.Random) -> list[dict[str, str]]:
    """A chat over the turns from `start` on: they alternate as user and assistant.

    Sometimes a system message leads, which may name the assistant's part. Sometimes a user says
    one sentence only, as users do.
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
