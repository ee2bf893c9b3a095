"""Talking with a model: one question, or a conversation at the terminal."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType

from swapd.doors.cli.control import ensure_running
from swapd.doors.cli.line import Line
from swapd.doors.cli.prompt import history, read_message
from swapd.doors.cli.say import FailedError, complain, waiting
from swapd.home import find_home

HELP = '''/bye    end, as Ctrl-D does
/clear  forget what was said
"""     begin and end a message of several lines; or end each line with \\
Ctrl-C  stop the answer'''
DIM, PLAIN = "\x1b[2m", "\x1b[0m"
Message = dict[str, str]


def run(name: str, prompt: str, system: str, settings: Mapping[str, object]) -> int:
    """Answer the prompt and what comes through a pipe; without either, begin a conversation.

    `settings` are fields of the request, such as temperature. Starts swapd if it does not run.
    """
    home = find_home()
    asked = _with_pipe(prompt)
    if not asked and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise FailedError("there is nothing to ask: give a prompt, or send one through a pipe")
    ensure_running(home)
    with Line(home) as line:
        talk = Conversation(line, name, system, settings)
        if asked:
            talk.answer(asked)
            return 0
        with waiting(f"loading {name}"):
            loaded = line.ask(id=0, op="load", model=name)
        if "error" in loaded:
            raise FailedError(loaded["error"]["message"])
        print(f"{loaded['model']} is ready; /? for help")
        with history(home.state / "history"):
            _converse(talk)
    return 0


def _with_pipe(prompt: str) -> str:
    """The prompt, and after it what a pipe or a file brings."""
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
        return prompt
    return "\n\n".join(part for part in (prompt, sys.stdin.read().strip()) if part)


def _converse(talk: Conversation) -> None:
    """Question and answer until the end of the input."""
    while True:
        try:
            text = read_message()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends the chat)")
            continue
        if text == "/bye":
            return
        if text == "/clear":
            talk.forget()
        elif text in ("/?", "/help"):
            print(HELP)
        elif text:
            _answered(talk, text)


def _answered(talk: Conversation, text: str) -> None:
    """Print the answer; what goes wrong with it does not end the chat."""
    try:
        with talk.stoppable():
            talk.answer(text)
    except RefusedAnswerError as error:
        complain(str(error))


class RefusedAnswerError(FailedError):
    """The model gave no answer, or half of one; the connection is well."""


class Conversation:
    """What was said so far, and the way to the model."""

    def __init__(self, line: Line, name: str, system: str, settings: Mapping[str, object]) -> None:
        self._line = line
        self._name = name
        self._settings = settings
        self._opening: list[Message] = [_message("system", system)] if system else []
        self._said: list[Message] = []
        self._id = 0

    def forget(self) -> None:
        """Begin anew."""
        self._said = []

    def answer(self, text: str) -> None:
        """Ask, and print the answer as it comes. Raises RefusedAnswerError."""
        self._id += 1
        question = _message("user", text)
        messages = [*self._opening, *self._said, question]
        self._line.say(id=self._id, model=self._name, messages=messages, **self._settings)
        said = self._print()
        if said:
            self._said += [question, _message("assistant", said)]

    def _print(self) -> str:
        pieces: list[str] = []
        with ExitStack() as sign:
            sign.enter_context(waiting(f"waiting for {self._name}"))
            while True:
                heard = self._line.hear()
                if heard.get("id") != self._id:
                    continue  # A cancel that came too late is told so.
                sign.close()
                if "token" in heard:
                    pieces.append(heard["token"])
                    _write(heard["token"])
                elif "delta" in heard:
                    _write_thought(heard["delta"].get("reasoning_content", ""))
                else:
                    break
        if pieces and not pieces[-1].endswith("\n"):
            _write("\n")
        if "error" in heard:
            raise RefusedAnswerError(heard["error"]["message"])
        return "".join(pieces)

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """While the body runs, Ctrl-C stops the answer; a second one ends the program."""

        def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
            signal.signal(signal.SIGINT, before)
            self._line.say(id=self._id, op="cancel")

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _write_thought(text: str) -> None:
    """What a model says to itself is for people at a terminal only."""
    if text and sys.stdout.isatty():
        _write(f"{DIM}{text}{PLAIN}")
