"""Messages of the control socket: requests, response lines, errors. See docs/socket.md."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import msgspec

Fields: TypeAlias = Mapping[str, msgspec.Raw]
Line: TypeAlias = dict[str, Any]
Send: TypeAlias = Callable[[Line], Awaitable[None]]


class SocketRequest(msgspec.Struct, frozen=True):
    """The fields of a request line that swapd reads; further fields are the model's."""

    id: str | int
    op: str = "chat"
    model: str | None = None
    prompt: str | None = None


class OperationError(Exception):
    """A request failed: code and message of its error line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
