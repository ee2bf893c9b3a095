"""Clients of the running swapd: HTTP by the socket in its data directory, and the control socket.

Both sockets are open to the user alone, so that commands need no key.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import msgspec

from swapd.cli.output import NOT_RUNNING, FailedError, print_error
from swapd.paths import Paths
from swapd.system.lockfile import LockHolder, read_holder

if TYPE_CHECKING:
    import http.client

TIMEOUT = 5.0
"""Seconds for a response that needs no model."""


class NoResponseError(FailedError):
    """The endpoint does not respond, or responds with an error."""


class SocketClient:
    """A connection to the control socket. Raises FailedError when swapd does not respond."""

    def __init__(self, paths: Paths, timeout: float | None = None) -> None:
        try:
            self._sock = _connect(paths.socket, timeout)
        except OSError as error:
            log = paths.logs / "swapd.log"
            message = f"{paths.socket} can't be opened: {error.strerror}; see {log}"
            raise FailedError(message) from error
        self._reader = self._sock.makefile("rb")

    def __enter__(self) -> SocketClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._sock.close()

    def send(self, **request: object) -> None:
        """Send a request."""
        try:
            self._sock.sendall(msgspec.json.encode(request) + b"\n")
        except ConnectionError as error:
            raise FailedError("swapd is gone") from error

    def receive(self) -> dict[str, Any]:
        """Return the next line of a response."""
        try:
            line = self._reader.readline()
        except ConnectionError as error:
            raise FailedError("swapd is gone") from error
        except TimeoutError as error:
            raise FailedError("swapd does not respond") from error
        if not line.endswith(b"\n"):
            raise FailedError("swapd is gone")
        message: dict[str, Any] = msgspec.json.decode(line)
        return message

    def request(self, **request: object) -> dict[str, Any]:
        """Send a request whose response is one line, and return it."""
        self.send(**request)
        return self.receive()


def _connect(path: Path, timeout: float | None = None) -> socket.socket:
    """Connect from the socket's folder: an address has about 100 bytes, a path may have more.

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


def running(paths: Paths) -> LockHolder | None:
    """Return the swapd that serves this data directory, or None."""
    holder = read_holder(paths.state)
    return holder if holder is not None and holder.alive() else None


def require_running(paths: Paths) -> LockHolder:
    """Return the running swapd, or raise FailedError."""
    holder = running(paths)
    if holder is None:
        raise FailedError("swapd is not running", NOT_RUNNING)
    return holder


def request_reload(paths: Paths) -> None:
    """Let a running swapd reload its configuration; return when that is done."""
    if running(paths) is None:
        return
    try:
        with SocketClient(paths, TIMEOUT) as client:
            response = client.request(id=1, op="reload")
    except FailedError:
        return  # It also watches the file, and reloads it some moments later.
    if "error" in response:
        print_error(response["error"]["message"])


def get(holder: LockHolder, path: str, timeout: float | None = TIMEOUT) -> Any:
    """Return the JSON at `path` of the running swapd. Raises NoResponseError."""
    return _request(holder, "GET", path, None, timeout)


def post(holder: LockHolder, path: str, timeout: float | None = None) -> Any:
    """Return the JSON response to a POST without a body. Raises NoResponseError."""
    return _request(holder, "POST", path, b"", timeout)


def with_model(path: str, model: str) -> str:
    """Return the path with the model in its query."""
    return f"{path}?model={quote(model, safe='')}"


def stream(holder: LockHolder, path: str, body: object) -> Iterator[dict[str, Any]]:
    """Yield the server-sent events of the response to a POST. Raises NoResponseError."""
    encoded = msgspec.json.encode(body)
    with _response(holder, "POST", path, encoded, None) as response:
        for line in response:
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                event: dict[str, Any] = msgspec.json.decode(line[5:])
                if "error" in event:
                    raise NoResponseError(_message(line[5:]) or "the answer broke off")
                yield event


def _request(
    holder: LockHolder, method: str, path: str, body: bytes | None, timeout: float | None
) -> Any:
    with _response(holder, method, path, body, timeout) as response:
        return msgspec.json.decode(response.read())


@contextmanager
def _response(
    holder: LockHolder, method: str, path: str, body: bytes | None, timeout: float | None
) -> Iterator[http.client.HTTPResponse]:
    """Return a response of status 200. Proxies in the environment are not used."""
    import http.client

    at = urlsplit(holder.endpoint)
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=timeout)
    try:
        if holder.socket:
            # An open socket keeps the connection from connecting to the endpoint.
            connection.sock = _connect(Path(holder.socket), timeout)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            text = response.read()
            raise NoResponseError(_message(text) or f"{response.status} {response.reason}")
        yield response
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        raise NoResponseError(f"{holder.endpoint} does not respond: {error}") from error
    finally:
        connection.close()


def _message(body: bytes) -> str:
    """Return the message of an OpenAI error body; empty for any other body."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return ""
