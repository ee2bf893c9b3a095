"""Talking with a model: one question, or a conversation at the terminal."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

from swapd.doors.cli.control import ensure_running
from swapd.doors.cli.prompt import history, read_message
from swapd.doors.cli.say import FailedError, complain, waiting
from swapd.doors.cli.ways import RefusedAnswerError, StoppedError, Way, way_to
from swapd.paths import find_home

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
    asked, system = _with_pipe(_as_text(prompt)), _as_text(system)
    if not asked and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise FailedError("there is nothing to ask: give a prompt, or send one through a pipe")
    ensure_running(home)
    with way_to(home) as way:
        talk = Conversation(way, name, system, settings)
        if asked:
            talk.answer(asked)
            return 0
        with waiting(f"loading {name}"):
            loaded = way.load(name)
        print(f"{loaded} is ready; /? for help")
        with history(home.state / "history"):
            _converse(talk)
    return 0


def _with_pipe(prompt: str) -> str:
    """The prompt, and after it what a pipe or a file brings."""
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
        return prompt
    piped = sys.stdin.buffer.read().decode("utf-8", "replace").replace("\r\n", "\n")
    return "\n\n".join(part for part in (prompt, piped.strip()) if part)


def _as_text(given: str) -> str:
    """With a sign for each byte that is not UTF-8: what is not text can't be sent."""
    return os.fsencode(given).decode("utf-8", "replace")


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
        except UnicodeDecodeError:
            complain("that is not text in UTF-8")
            continue
        if text == "/bye":
            return
        if text == "/clear":
            talk.forget()
        elif text in ("/?", "/help"):
            print(HELP)
        elif text:
            _answered(talk, _as_text(text))


def _answered(talk: Conversation, text: str) -> None:
    """Print the answer; what goes wrong with it does not end the chat."""
    try:
        with suppress(StoppedError), talk.stoppable():
            talk.answer(text)
    except RefusedAnswerError as error:
        complain(str(error))


class Conversation:
    """What was said so far, and the way to the model."""

    def __init__(self, way: Way, name: str, system: str, settings: Mapping[str, object]) -> None:
        self._way = way
        self._name = name
        self._settings = settings
        self._opening: list[Message] = [_message("system", system)] if system else []
        self._said: list[Message] = []

    def forget(self) -> None:
        """Begin anew."""
        self._said = []

    def answer(self, text: str) -> None:
        """Ask, and print the answer as it comes. Raises RefusedAnswerError."""
        question = _message("user", text)
        messages = [*self._opening, *self._said, question]
        said = self._print({"model": self._name, "messages": messages, **self._settings})
        if said:
            self._said += [question, _message("assistant", said)]

    def _print(self, request: Mapping[str, object]) -> str:
        pieces: list[str] = []
        with suppress(StoppedError), ExitStack() as end:
            end.callback(_end_line, pieces)
            sign = end.enter_context(ExitStack())
            sign.enter_context(waiting(f"waiting for {self._name}"))
            for piece in self._way.ask(request):
                sign.close()
                pieces.append(piece.text)
                _write(piece.text)
                _write_thought(piece.thought)
        return "".join(pieces)

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """While the body runs, Ctrl-C stops the answer; a second one ends the program."""

        def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
            signal.signal(signal.SIGINT, before)
            self._way.stop()

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _end_line(pieces: list[str]) -> None:
    said = "".join(pieces)
    if said and not said.endswith("\n"):
        _write("\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _write_thought(text: str) -> None:
    """What a model says to itself is for people at a terminal only."""
    if text and sys.stdout.isatty():
        _write(f"{DIM}{text}{PLAIN}")
