"""The ways to a model for a chat: the socket, and HTTP where there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from swapd.doors.cli.client import NoAnswerError, named, post, running, stream
from swapd.doors.cli.line import Line
from swapd.doors.cli.say import FailedError, complain
from swapd.paths import Home
from swapd.system.lockfile import Holder


@dataclass(frozen=True, slots=True)
class Piece:
    """What comes next of an answer."""

    text: str = ""
    thought: str = ""
    """What the model says to itself."""


class RefusedAnswerError(FailedError):
    """The model gave no answer, or half of one; what comes next may be answered."""


class StoppedError(Exception):
    """The answer was told to stop, and there is no more of it."""


class Way(Protocol):
    """One conversation's connection; to be closed."""

    def load(self, name: str) -> str:
        """Have the model loaded; its own name. Raises FailedError."""

    def ask(self, request: Mapping[str, object]) -> Iterator[Piece]:
        """The answer to a chat request, as it comes.

        Raises RefusedAnswerError, and StoppedError where `stop` ends it so.
        """

    def stop(self) -> None:
        """End the answer that is under way; called while the program waits for more of it."""

    def __enter__(self) -> Way: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None: ...


def way_to(home: Home) -> Way:
    """The socket of a swapd that runs, or, where that can't be opened, HTTP. Raises FailedError."""
    try:
        return SocketWay(Line(home))
    except FailedError as error:
        holder = running(home)
        if holder is None:
            raise
        complain(f"{error}; asking {holder.endpoint} instead")
        return HttpWay(holder)


class SocketWay:
    """Over one line, with a number for each request."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._id = 0

    def load(self, name: str) -> str:
        """As the protocol says."""
        loaded = self._line.ask(id=0, op="load", model=name)
        if "error" in loaded:
            raise FailedError(loaded["error"]["message"])
        return str(loaded["model"])

    def ask(self, request: Mapping[str, object]) -> Iterator[Piece]:
        """As the protocol says."""
        self._id += 1
        self._line.say(id=self._id, **request)
        while True:
            heard = self._line.hear()
            if heard.get("id") != self._id:
                continue  # A cancel that came too late is told so.
            if "token" in heard:
                yield Piece(heard["token"])
            elif "delta" in heard:
                yield Piece(thought=heard["delta"].get("reasoning_content", ""))
            elif "error" in heard:
                raise RefusedAnswerError(heard["error"]["message"])
            else:
                return

    def stop(self) -> None:
        """Say so; the answer's last line comes then."""
        self._line.say(id=self._id, op="cancel")

    def __enter__(self) -> SocketWay:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.__exit__()


class HttpWay:
    """A request for each answer."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder

    def load(self, name: str) -> str:
        """As the protocol says."""
        return str(post(self._holder, named("/load", name))["loaded"])

    def ask(self, request: Mapping[str, object]) -> Iterator[Piece]:
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

    def __enter__(self) -> HttpWay:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to close between requests."""


def _piece(delta: dict[str, Any]) -> Piece:
    return Piece(delta.get("content") or "", delta.get("reasoning_content") or "")
