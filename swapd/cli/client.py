"""Asks a running swapd over HTTP, by the socket in its home, where no key is needed.

The other end of the socket: one connection to a running swapd.
"""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from swapd.cli.output import NOT_RUNNING, FailedError
from swapd.paths import Paths
from swapd.system.lockfile import LockHolder, read_holder


class SocketClient:
    """A connection; to be closed. Raises FailedError when there is nobody, or nobody any more."""

    def __init__(self, home: Paths, timeout: float | None = None) -> None:
        try:
            self._sock = connected(home.socket, timeout)
        except OSError as error:
            log = home.logs / "swapd.log"
            message = f"{home.socket} can't be opened: {error.strerror}; see {log}"
            raise FailedError(message) from error
        self._heard = self._sock.makefile("rb")

    def __enter__(self) -> SocketClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._heard.close()
        self._sock.close()

    def say(self, **request: object) -> None:
        """Send one request."""
        try:
            self._sock.sendall(msgspec.json.encode(request) + b"\n")
        except ConnectionError as error:
            raise FailedError("swapd is gone") from error

    def hear(self) -> dict[str, Any]:
        """The next line of an answer."""
        try:
            line = self._heard.readline()
        except ConnectionError as error:
            raise FailedError("swapd is gone") from error
        except TimeoutError as error:
            raise FailedError("swapd does not answer") from error
        if not line.endswith(b"\n"):
            raise FailedError("swapd is gone")
        heard: dict[str, Any] = msgspec.json.decode(line)
        return heard

    def ask(self, **request: object) -> dict[str, Any]:
        """Send a request that is answered with one line, and hear it."""
        self.say(**request)
        return self.hear()


def connected(path: Path, timeout: float | None = None) -> socket.socket:
    """Connected from beside the socket's file: an address may have some 100 bytes, a path more.

    Raises OSError.
    """
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)
        sock.connect(path.name)
    except OSError:
        sock.close()
        raise
    finally:
        os.fchdir(here)
        os.close(here)
    return sock


SOON = 5.0
"""Seconds in which what needs no model is answered."""


class NoAnswerError(FailedError):
    """The endpoint does not answer, or says why it refuses."""


def running(home: Paths) -> LockHolder | None:
    """Who serves this home, if anybody does."""
    holder = read_holder(home.state)
    return holder if holder is not None and holder.alive() else None


def require_running(home: Paths) -> LockHolder:
    """The same; raises FailedError when nobody does."""
    holder = running(home)
    if holder is None:
        raise FailedError("swapd is not running", NOT_RUNNING)
    return holder


def get(holder: LockHolder, path: str, timeout: float | None = SOON) -> Any:
    """The JSON at `path` of the swapd that `holder` describes. Raises NoAnswerError."""
    return _asked(holder, "GET", path, None, timeout)


def post(holder: LockHolder, path: str, timeout: float | None = None) -> Any:
    """What a POST of nothing is answered. Raises NoAnswerError."""
    return _asked(holder, "POST", path, b"", timeout)


def named(path: str, model: str) -> str:
    """The path with the model in its query."""
    return f"{path}?model={quote(model, safe='')}"


def stream(holder: LockHolder, path: str, body: object) -> Iterator[dict[str, Any]]:
    """The events that a POST is answered with, as they come. Raises NoAnswerError."""
    encoded = msgspec.json.encode(body)
    with _answer(holder, "POST", path, encoded, None) as answer:
        for line in answer:
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                event: dict[str, Any] = msgspec.json.decode(line[5:])
                if "error" in event:
                    raise NoAnswerError(_message(line[5:]) or "the answer broke off")
                yield event


def _asked(
    holder: LockHolder, method: str, path: str, body: bytes | None, timeout: float | None
) -> Any:
    with _answer(holder, method, path, body, timeout) as answer:
        return msgspec.json.decode(answer.read())


@contextmanager
def _answer(
    holder: LockHolder, method: str, path: str, body: bytes | None, timeout: float | None
) -> Iterator[http.client.HTTPResponse]:
    """An answer of status 200. Goes to the machine itself: proxies in the environment are not."""
    connection = _Connection(holder, timeout)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            said = answer.read()
            raise NoAnswerError(_message(said) or f"{answer.status} {answer.reason}")
        yield answer
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        raise NoAnswerError(f"{holder.endpoint} does not answer: {error}") from error
    finally:
        connection.close()


class _Connection(http.client.HTTPConnection):
    """A connection by the socket, or, where that could not be made, to the endpoint."""

    def __init__(self, holder: LockHolder, timeout: float | None) -> None:
        at = urlsplit(holder.endpoint)
        super().__init__(at.hostname or "", at.port, timeout=timeout)
        self._socket = holder.socket

    def connect(self) -> None:
        if self._socket:
            self.sock = connected(Path(self._socket), self.timeout)
        else:
            super().connect()


def _message(body: bytes) -> str:
    """The sentence in an error of OpenAI's shape; empty when it is none."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return ""
