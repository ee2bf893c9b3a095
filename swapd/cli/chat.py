"""Commands that talk with a model: their options, and no more.

What somebody types at a prompt: lines with a history, and messages of several lines.

The ways to a model for a chat: the socket, and HTTP where there is none.

Talking with a model: one question, or a conversation at the terminal.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated, Any, Protocol

import typer

from swapd.cli.client import NoAnswerError, SocketClient, named, post, running, stream
from swapd.cli.options import Name
from swapd.cli.output import FailedError, print_error, waiting
from swapd.cli.start_stop import ensure_running
from swapd.paths import Paths, find_paths
from swapd.system.lockfile import LockHolder

Prompt = Annotated[
    list[str] | None, typer.Argument(metavar="PROMPT", help="What to ask; none: a chat.")
]


def run(  # noqa: PLR0913, PLR0917
    name: Name,
    prompt: Prompt = None,
    system: Annotated[str, typer.Option(help="What the model is told about itself.")] = "",
    temp: Annotated[float | None, typer.Option(help="Temperature.", min=0)] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling.", min=0, max=1)] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the likeliest so many.", min=0)] = None,
    min_p: Annotated[float | None, typer.Option(help="Least probability.", min=0, max=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.", min=1)] = None,
) -> None:
    """Chat with a model, or ask it one thing.

    Starts swapd if it does not run.
    """

    wishes = {
        "temperature": temp,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "seed": seed,
        "max_tokens": max_tokens,
    }
    settings = {key: value for key, value in wishes.items() if value is not None}
    raise typer.Exit(run_chat(name, " ".join(prompt or ()), system, settings))


KEPT = 1000
"""Lines of history."""
FENCE = '"""'


@contextmanager
def history(path: Path) -> Iterator[None]:
    """Let the arrow keys bring back what was typed before, also in earlier chats."""
    try:
        import readline
    except ImportError:
        # A Python without it has no arrow keys, and chats all the same.
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT, 0o600))
    readline.set_history_length(KEPT)
    readline.read_history_file(path)
    try:
        yield
    finally:
        readline.write_history_file(path)


def read_message(line: Callable[[str], str] = input) -> str:
    '''One message: a line; several between `"""`; or several where each but the last ends in `\\`.

    Raises EOFError at the end of the input.
    '''
    first = line(">>> ")
    if first.lstrip().startswith(FENCE):
        return _fenced(first.lstrip().removeprefix(FENCE), line)
    lines = [first]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(line("... "))
    return "\n".join(lines).strip()


def _fenced(first: str, line: Callable[[str], str]) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(FENCE):
        lines.append(line("... "))
    lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
    return "\n".join(lines).strip("\n")


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """What comes next of an answer."""

    text: str = ""
    thought: str = ""
    """What the model says to itself."""


class RefusedAnswerError(FailedError):
    """The model gave no answer, or half of one; what comes next may be answered."""


class StoppedError(Exception):
    """The answer was told to stop, and there is no more of it."""


class ChatTransport(Protocol):
    """One conversation's connection; to be closed."""

    def load(self, name: str) -> str:
        """Have the model loaded; its own name. Raises FailedError."""

    def ask(self, request: Mapping[str, object]) -> Iterator[ChatDelta]:
        """The answer to a chat request, as it comes.

        Raises RefusedAnswerError, and StoppedError where `stop` ends it so.
        """

    def stop(self) -> None:
        """End the answer that is under way; called while the program waits for more of it."""

    def __enter__(self) -> ChatTransport: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None: ...


def open_transport(home: Paths) -> ChatTransport:
    """The socket of a swapd that runs, or, where that can't be opened, HTTP. Raises FailedError."""
    try:
        return SocketTransport(SocketClient(home))
    except FailedError as error:
        holder = running(home)
        if holder is None:
            raise
        print_error(f"{error}; asking {holder.endpoint} instead")
        return HttpTransport(holder)


class SocketTransport:
    """Over one line, with a number for each request."""

    def __init__(self, line: SocketClient) -> None:
        self._line = line
        self._id = 0

    def load(self, name: str) -> str:
        """As the protocol says."""
        loaded = self._line.ask(id=0, op="load", model=name)
        if "error" in loaded:
            raise FailedError(loaded["error"]["message"])
        return str(loaded["model"])

    def ask(self, request: Mapping[str, object]) -> Iterator[ChatDelta]:
        """As the protocol says."""
        self._id += 1
        self._line.say(id=self._id, **request)
        while True:
            heard = self._line.hear()
            if heard.get("id") != self._id:
                continue  # A cancel that came too late is told so.
            if "token" in heard:
                yield ChatDelta(heard["token"])
            elif "delta" in heard:
                yield ChatDelta(thought=heard["delta"].get("reasoning_content", ""))
            elif "error" in heard:
                raise RefusedAnswerError(heard["error"]["message"])
            else:
                return

    def stop(self) -> None:
        """Say so; the answer's last line comes then."""
        self._line.say(id=self._id, op="cancel")

    def __enter__(self) -> SocketTransport:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.__exit__()


class HttpTransport:
    """A request for each answer."""

    def __init__(self, holder: LockHolder) -> None:
        self._holder = holder

    def load(self, name: str) -> str:
        """As the protocol says."""
        return str(post(self._holder, named("/load", name))["loaded"])

    def ask(self, request: Mapping[str, object]) -> Iterator[ChatDelta]:
        """As the protocol says."""
        try:
            for event in stream(self._holder, "/v1/chat/completions", {**request, "stream": True}):
                for choice in event.get("choices", ()):
                    yield _piece(choice.get("delta") or {})
        except NoAnswerError as error:
            raise RefusedAnswerError(str(error)) from error

    def stop(self) -> None:
        """Leave: who leaves is not answered any further."""
        raise StoppedError

    def __enter__(self) -> HttpTransport:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to close between requests."""


def _piece(delta: dict[str, Any]) -> ChatDelta:
    return ChatDelta(delta.get("content") or "", delta.get("reasoning_content") or "")


HELP = '''/bye    end, as Ctrl-D does
/clear  forget what was said
"""     begin and end a message of several lines; or end each line with \\
Ctrl-C  stop the answer'''
DIM, PLAIN = "\x1b[2m", "\x1b[0m"
Message = dict[str, str]


def run_chat(name: str, prompt: str, system: str, settings: Mapping[str, object]) -> int:
    """Answer the prompt and what comes through a pipe; without either, begin a conversation.

    `settings` are fields of the request, such as temperature. Starts swapd if it does not run.
    """
    home = find_paths()
    asked, system = _with_pipe(_as_text(prompt)), _as_text(system)
    if not asked and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise FailedError("there is nothing to ask: give a prompt, or send one through a pipe")
    ensure_running(home)
    with open_transport(home) as way:
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
            print_error("that is not text in UTF-8")
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
        print_error(str(error))


class Conversation:
    """What was said so far, and the way to the model."""

    def __init__(
        self, way: ChatTransport, name: str, system: str, settings: Mapping[str, object]
    ) -> None:
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
