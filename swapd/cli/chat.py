"""`run`: one question to a model, or a conversation at the terminal.

The transport is the control socket or, where it can't be opened, HTTP. Prompts of a conversation
have a history and may span several lines.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol

import typer

from swapd.cli.options import Name
from swapd.cli.output import FailedError, print_error, waiting
from swapd.paths import Paths, find_paths

if TYPE_CHECKING:
    from swapd.cli.client import SocketClient
    from swapd.system.lockfile import LockHolder

HISTORY_LINES = 1000
FENCE = '"""'
HELP = '''/bye    end, as Ctrl-D does
/clear  forget the conversation so far
"""     begin and end a message of several lines; or end each line with \\
Ctrl-C  stop the answer'''
DIM, NORMAL = "\x1b[2m", "\x1b[0m"
Message = dict[str, str]
Prompt = Annotated[
    list[str] | None, typer.Argument(metavar="PROMPT", help="The question; none: a conversation.")
]


def run(  # noqa: PLR0913, PLR0917  each is an option of the request
    name: Name,
    prompt: Prompt = None,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    temp: Annotated[float | None, typer.Option(help="Temperature.", min=0)] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling.", min=0, max=1)] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Number of most likely tokens to sample from.", min=0)
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Least probability, relative to the most likely token.", min=0, max=1),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer.", min=1)] = None,
) -> int:
    """Ask a model one question, or chat with it.

    Starts swapd if it does not run.
    """
    options = {
        "temperature": temp,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "seed": seed,
        "max_tokens": max_tokens,
    }
    settings = {key: value for key, value in options.items() if value is not None}
    return _run_chat(name, " ".join(prompt or ()), system, settings)


def _run_chat(name: str, prompt: str, system: str, settings: Mapping[str, object]) -> int:
    """Answer the prompt and the piped input; without either, begin a conversation.

    `settings` are fields of the request, such as temperature.
    """
    from swapd.cli.start_stop import ensure_running

    paths = find_paths()
    question, system = _with_piped_input(_as_text(prompt)), _as_text(system)
    if not question and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise FailedError("there is nothing to ask: give a prompt, or send one through a pipe")
    ensure_running(paths)
    with open_transport(paths) as transport:
        conversation = Conversation(transport, name, system, settings)
        if question:
            conversation.answer(question)
            return 0
        with waiting(f"loading {name}"):
            loaded = transport.load(name)
        print(f"{loaded} is ready; /? for help")
        with history(paths.state / "history"):
            _converse(conversation)
    return 0


@contextmanager
def history(path: Path) -> Iterator[None]:
    """Let the arrow keys recall earlier lines, those of earlier chats too."""
    try:
        import readline
    except ImportError:
        # A Python without readline has no history; the chat works without.
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT, 0o600))
    readline.set_history_length(HISTORY_LINES)
    readline.read_history_file(path)
    try:
        yield
    finally:
        readline.write_history_file(path)


def read_message(line: Callable[[str], str] = input) -> str:
    '''Read a message: a line, several between `"""`, or several that end in `\\` but for the last.

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


class ChatDelta(NamedTuple):
    """The next part of an answer."""

    text: str = ""
    reasoning: str = ""
    """Reasoning before the answer proper."""


class AnswerError(FailedError):
    """The model gave no complete answer; the next request may succeed."""


class StoppedError(Exception):
    """The user stopped the answer."""


class ChatTransport(Protocol):
    """The connection of a conversation; a context manager that closes it."""

    def load(self, name: str) -> str:
        """Load the model and return its name. Raises FailedError."""

    def ask(self, request: Mapping[str, object]) -> Iterator[ChatDelta]:
        """Send a chat request and yield the answer as it arrives.

        Raises AnswerError, and StoppedError where `stop` ends the answer that way.
        """

    def stop(self) -> None:
        """Stop the current answer; called from a signal handler while `ask` waits for more."""

    def __enter__(self) -> ChatTransport: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None: ...


def open_transport(paths: Paths) -> ChatTransport:
    """Open the control socket or, where that fails, HTTP. Raises FailedError."""
    from swapd.cli.client import SocketClient, running

    try:
        return SocketTransport(SocketClient(paths))
    except FailedError as error:
        holder = running(paths)
        if holder is None:
            raise
        print_error(f"{error}; using {holder.endpoint} instead")
        return HttpTransport(holder)


class SocketTransport:
    """Requests over one connection to the control socket, each with an id."""

    def __init__(self, client: SocketClient) -> None:
        self._client = client
        self._id = 0

    def load(self, name: str) -> str:
        """Load the model, as in the protocol."""
        loaded = self._client.request(id=0, op="load", model=name)
        if "error" in loaded:
            raise FailedError(loaded["error"]["message"])
        return str(loaded["model"])

    def ask(self, request: Mapping[str, object]) -> Iterator[ChatDelta]:
        """Send a chat request, as in the protocol."""
        self._id += 1
        self._client.send(id=self._id, **request)
        while True:
            message = self._client.receive()
            if message.get("id") != self._id:
                continue  # The response to a cancel that arrived too late.
            if "token" in message:
                yield ChatDelta(message["token"])
            elif "delta" in message:
                yield ChatDelta(reasoning=message["delta"].get("reasoning_content", ""))
            elif "error" in message:
                raise AnswerError(message["error"]["message"])
            else:
                return

    def stop(self) -> None:
        """Cancel the request; swapd then sends the last line of the answer."""
        self._client.send(id=self._id, op="cancel")

    def __enter__(self) -> SocketTransport:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.__exit__()


class HttpTransport:
    """An HTTP request for each answer."""

    def __init__(self, holder: LockHolder) -> None:
        self._holder = holder

    def load(self, name: str) -> str:
        """Load the model, as in the protocol."""
        from swapd.cli.client import post, with_model

        return str(post(self._holder, with_model("/load", name))["loaded"])

    def ask(self, request: Mapping[str, object]) -> Iterator[ChatDelta]:
        """Send a chat request, as in the protocol."""
        from swapd.cli.client import NoResponseError, stream

        try:
            for event in stream(self._holder, "/v1/chat/completions", {**request, "stream": True}):
                for choice in event.get("choices", ()):
                    yield _delta(choice.get("delta") or {})
        except NoResponseError as error:
            raise AnswerError(str(error)) from error

    def stop(self) -> None:
        """Raise StoppedError: closing the connection cancels the request."""
        raise StoppedError

    def __enter__(self) -> HttpTransport:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: no connection is open between requests."""


def _delta(delta: dict[str, Any]) -> ChatDelta:
    return ChatDelta(delta.get("content") or "", delta.get("reasoning_content") or "")


def _with_piped_input(prompt: str) -> str:
    """Return the prompt followed by the input from a pipe or a file."""
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
        return prompt
    piped = sys.stdin.buffer.read().decode("utf-8", "replace").replace("\r\n", "\n")
    return "\n\n".join(part for part in (prompt, piped.strip()) if part)


def _as_text(argument: str) -> str:
    """Replace each byte that is not UTF-8, since JSON can't hold it."""
    return os.fsencode(argument).decode("utf-8", "replace")


def _converse(conversation: Conversation) -> None:
    """Read messages and print answers until the end of the input."""
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
            conversation.clear()
        elif text in ("/?", "/help"):
            print(HELP)
        elif text:
            _print_answer(conversation, _as_text(text))


def _print_answer(conversation: Conversation, text: str) -> None:
    """Print the answer; a failed one does not end the conversation."""
    try:
        with suppress(StoppedError), conversation.stoppable():
            conversation.answer(text)
    except AnswerError as error:
        print_error(str(error))


class Conversation:
    """The messages so far, and the connection to the model."""

    def __init__(
        self, transport: ChatTransport, name: str, system: str, settings: Mapping[str, object]
    ) -> None:
        self._transport = transport
        self._name = name
        self._settings = settings
        self._system: list[Message] = [_message("system", system)] if system else []
        self._messages: list[Message] = []

    def clear(self) -> None:
        """Forget all messages but the system prompt."""
        self._messages = []

    def answer(self, text: str) -> None:
        """Send the message and print the answer as it arrives. Raises AnswerError."""
        question = _message("user", text)
        messages = [*self._system, *self._messages, question]
        answer = self._print({"model": self._name, "messages": messages, **self._settings})
        if answer:
            self._messages += [question, _message("assistant", answer)]

    def _print(self, request: Mapping[str, object]) -> str:
        """Send the request, print the answer and return it."""
        parts: list[str] = []
        with suppress(StoppedError), ExitStack() as stack:
            stack.callback(_end_line, parts)
            spinner = stack.enter_context(ExitStack())
            spinner.enter_context(waiting(f"waiting for {self._name}"))
            for delta in self._transport.ask(request):
                spinner.close()
                parts.append(delta.text)
                _write(delta.text)
                _write_reasoning(delta.reasoning)
        return "".join(parts)

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Let Ctrl-C stop the answer while the body runs; a second one ends the program."""

        def stop(*_: object) -> None:
            signal.signal(signal.SIGINT, before)
            self._transport.stop()

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _end_line(parts: list[str]) -> None:
    text = "".join(parts)
    if text and not text.endswith("\n"):
        _write("\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _write_reasoning(text: str) -> None:
    """Print reasoning at a terminal only: piped output holds the answer alone."""
    if text and sys.stdout.isatty():
        _write(f"{DIM}{text}{NORMAL}")
