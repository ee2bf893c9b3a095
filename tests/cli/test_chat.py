"""Chats with a model: through a pipe, with a prompt, and at a real terminal."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.user import User
from tests.daemon import ROOT, config, eventually
from tests.fixtures import Gate, fake

pytestmark = pytest.mark.filterwarnings("ignore:.*forkpty:DeprecationWarning")
PROMPT = ">>> "
GREEDY = ("--temp", "0", "--max-tokens", "12")


def test_piped_input_is_answered_with_the_answer_alone(served: User) -> None:
    answer = served.says("run", "bard", *GREEDY, input="Who goes there?\n")
    assert answer.endswith("\n")
    assert answer.strip()
    assert served.says("run", "bard", "Who", "goes there?", *GREEDY) == answer
    free = ("--seed", "3", "--max-tokens", "24")
    both = served.says("chat", "bard", "Who goes there?", *free, input="I am slain!\n")
    assert both == served.says("run", "bard", "Who goes there?\n\nI am slain!", *free)
    assert both != served.says("run", "bard", "Who goes there?", *free)


def test_http_is_used_without_a_socket(user: User) -> None:
    user.says("start")
    asked = ("run", "bard", "Who goes there?", *GREEDY)
    answer = user.says(*asked)
    (user.home / "swapd/.swapd/swapd.sock").unlink()
    again = user.types(*asked)
    assert again.stdout == answer
    assert "instead\n" in again.stderr
    assert "there is no model 'brad'" in user.fails("run", "brad", "Hello")


def test_settings_reach_the_model(served: User) -> None:
    once = served.says("run", "bard", "Speak", "--seed", "1", "--max-tokens", "9")
    assert served.says("run", "bard", "Speak", "--seed", "1", "--max-tokens", "9") == once
    output = served.says("run", "bard", "Speak", "--system", "You are a fool.", *GREEDY)
    assert output != served.says("run", "bard", "Speak", *GREEDY)
    assert "temp" in served.fails("run", "bard", "x", "--temp", "-1", status=2)


def test_invalid_questions_are_reported(served: User) -> None:
    output = served.fails("run", "brad", "Hello")
    assert output == (
        "swapd: there is no model 'brad' (did you mean 'bard'?); there are: alice, bard\n"
    )
    assert "there is nothing to ask" in served.fails("run", "bard")


def test_invalid_utf_8_is_replaced(served: User) -> None:
    clean = served.says("run", "bard", "hello \ufffd\ufffd", *GREEDY)
    assert served.says("run", "bard", "hello \udcff\udcfe", *GREEDY) == clean
    file = served.home / "latin"
    file.write_bytes(b"hello \xff\xfe\n")
    with file.open("rb") as piped:
        assert served.says("run", "bard", *GREEDY, stdin=piped) == clean
    assert "is not text in UTF-8" in served.fails("load", "b\udcffrd")
    assert "is not text in UTF-8" in served.fails("run", "b\udcffrd", "Hello")


def test_swapd_is_started_when_it_does_not_run(user: User) -> None:
    asked = user.types("run", "bard", "Who goes there?", "--max-tokens", "4")
    assert asked.returncode == 0, asked.stderr
    assert len(asked.stdout.splitlines()) == 1
    assert f"swapd: started at http://127.0.0.1:{user.port}" in asked.stderr


def test_a_conversation(served: User) -> None:
    with served.at_terminal("run", "bard", "--max-tokens", "8") as chat:
        chat.expect("bard is ready")
        chat.expect(PROMPT)
        chat.sendline("/?")
        chat.expect("Ctrl-C  stop the answer")
        chat.expect(PROMPT)
        chat.sendline("Who goes there?")
        chat.expect(PROMPT)
        assert chat.before.split("\n", 1)[1].strip(), chat.before
        chat.sendline('"""Friends,')
        chat.expect(r"\.\.\. ")
        chat.sendline('Romans"""')
        chat.expect(PROMPT)
        chat.sendline("one \\")
        chat.expect(r"\.\.\. ")
        chat.sendline("two")
        chat.expect(PROMPT)
        chat.send("\x1b[A\x1b[A\x1b[A\x1b[A\x1b[A")  # Up, to what was typed first but one.
        chat.expect("Who goes there")
        chat.sendintr()
        chat.expect("Ctrl-D ends the chat")
        chat.expect(PROMPT)
        chat.sendline("/clear")
        chat.expect(PROMPT)
        chat.sendeof()
        chat.wait()
        assert chat.exitstatus == 0
    stored = served.home / "swapd/.swapd/history"
    assert "Who goes there?" in stored.read_text()
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Callable[[str], Gate]]:
    made: list[Gate] = []

    def make(name: str) -> Gate:
        made.append(Gate(tmp_path / name))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("over", ["the socket", "HTTP"])
def test_ctrl_c_stops_the_answer_and_not_the_chat(
    user: User, gate: Callable[[str], Gate], over: str
) -> None:
    """Use a model whose next word never arrives."""
    words = gate("words")
    models = {"slow": fake("slow", f"--words 9 --word-gate {words.path}")}
    user.config.parent.mkdir()
    user.config.write_text(config(models))
    user.says("start")
    if over == "HTTP":
        (user.home / "swapd/.swapd/swapd.sock").unlink()
    with user.at_terminal("run", "slow") as chat:
        if over == "HTTP":
            chat.expect(rf"can't be opened: .*; using http://127.0.0.1:{user.port} instead")
        chat.expect("slow is ready")
        chat.expect(PROMPT)
        chat.sendline("Speak")
        words.let(2)
        chat.expect(r"slow1 ")
        chat.sendintr()
        chat.expect(PROMPT)
        words.open_for_good()
        chat.sendline("Again")
        chat.expect(r"slow8 ")
        chat.expect(PROMPT)
        chat.sendline("/bye")
        chat.wait()
        assert chat.exitstatus == 0
    eventually(lambda: '"busy":0' in user.says("ps", "--json"))


def test_the_end_of_swapd_is_reported(user: User) -> None:
    with user.at_terminal("run", "bard") as chat:
        chat.expect("bard is ready")
        chat.expect(PROMPT)
        user.says("stop", "--now")
        chat.sendline("Hello?")
        chat.expect("swapd: swapd is gone")
        chat.wait()
        assert chat.exitstatus == 1


def test_output_into_a_file_asks_no_questions(served: User, tmp_path: Path) -> None:
    """With a terminal as input and a file as output, the prompt alone is the question."""
    mine, theirs = pty.openpty()
    with (tmp_path / "answer").open("wb") as file:
        asked = subprocess.run(
            [str(ROOT / "model"), "run", "bard", "Who?", *GREEDY],
            env=served.environ,
            stdin=theirs,
            stdout=file,
            stderr=subprocess.PIPE,
            check=True,
            timeout=30,
        )
    os.close(mine)
    os.close(theirs)
    assert asked.stderr == b""
    assert ">>>" not in (tmp_path / "answer").read_text()
