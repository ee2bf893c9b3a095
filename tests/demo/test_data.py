"""Division of the texts for training, and the trainer's messages when it cannot start."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from demo.data import (
    Turn,
    conversation,
    divide,
    read_text,
    shorten,
    turns_of,
    typeset,
    words_of,
)
from tests.demo.conftest import DEMO, ROOT

PLAY = "ROMEO:\nIs the day so young?\n\nBENVOLIO:\nBut new struck nine.\nWhat sadness?\n"
STORY = "Down she went.\nHow deep it\nwas!\n\n    How doth the little\n    crocodile\n\nTHE END\n"


def test_a_play_is_speeches_with_their_speakers_and_lines() -> None:
    assert turns_of(PLAY) == [
        Turn("ROMEO", "Is the day so young?"),
        Turn("BENVOLIO", "But new struck nine.\nWhat sadness?"),
    ]


def test_a_story_is_paragraphs_and_only_verse_keeps_its_lines() -> None:
    assert turns_of(STORY) == [
        Turn("", "Down she went. How deep it was!"),
        Turn("", "How doth the little\n    crocodile"),
        Turn("", "THE END"),
    ]


def test_the_held_out_piece_begins_and_ends_at_paragraphs() -> None:
    text = "".join(f"Paragraph {n}.\n\n" for n in range(200))
    corpus = divide(text)
    assert corpus.before + corpus.held + corpus.after == text
    assert corpus.held.startswith("Paragraph") and corpus.after.startswith("Paragraph")
    assert len(corpus.held) == pytest.approx(0.05 * len(text), abs=30)


def test_words_are_lower_case_and_keep_inner_apostrophes() -> None:
    assert words_of("'Tis _Don't_ stop--DON’T! 42 dogs'") == [
        "tis",
        "don't",
        "stop",
        "don't",
        "dogs",
    ]
    assert divide("One two, two. THREE").words == ["one", "three", "two"]


def test_shortening_keeps_whole_sentences_and_at_least_the_first() -> None:
    assert shorten("One. Two two. Three.", 14) == "One. Two two."
    assert shorten("One. Two two. Three.", 1) == "One."
    assert shorten("no end at all", 3) == "no end at all"


def test_typesetting_curls_quotes_by_position() -> None:
    assert typeset("'Oh, don't!' said ('no') she") == "‘Oh, don’t!’ said (‘no’) she"


def test_a_conversation_alternates_and_may_name_the_assistants_part() -> None:
    turns = turns_of((PLAY + "\n") * 5)
    systems = set()
    for seed in range(40):
        messages = conversation(turns, 0, random.Random(seed))
        if messages[0]["role"] == "system":
            systems.add(messages.pop(0)["content"])
        assert [m["role"] for m in messages] == ["user", "assistant"] * 5
        assert messages[1]["content"] == "But new struck nine.\nWhat sadness?"
    assert "You are BENVOLIO." in systems
    assert len(systems) > 1


def test_typeset_quotes_are_read_as_straight_quotes(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("“It’s ‘so’”", encoding="utf-8")
    assert read_text(path) == "\"It's 'so'\""


def test_a_missing_text_is_reported_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^cannot read the text .*none\.txt: No such file"):
        read_text(tmp_path / "none.txt")


@pytest.mark.parametrize("missing", ["torch", "tokenizers"])
def test_without_the_training_extra_the_trainer_names_the_package(missing: str) -> None:
    given = ["train.py", "--shakespeare", "a.txt", "--wonderland", "b.txt"]
    code = (
        f"import runpy, sys; sys.modules[{missing!r}] = None; sys.argv = {given!r}; "
        f"runpy.run_path({str(DEMO / 'train.py')!r}, run_name='__main__')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("training needs ")
    assert ran.stderr.endswith("pip install 'swapd[train]'\n")
    assert ran.stderr.count("\n") == 1
