"""The other end of the socket: one connection to a running swapd."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import msgspec

from swapd.doors.cli.say import FailedError
from swapd.paths import Home


class Line:
    """A connection; to be closed. Raises FailedError when there is nobody, or nobody any more."""

    def __init__(self, home: Home, timeout: float | None = None) -> None:
        try:
            self._sock = connected(home.socket, timeout)
        except OSError as error:
            log = home.logs / "swapd.log"
            message = f"{home.socket} can't be opened: {error.strerror}; see {log}"
            raise FailedError(message) from error
        self._heard = self._sock.makefile("rb")

    def __enter__(self) -> Line:
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
