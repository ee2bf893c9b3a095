"""What is said over the socket: requests, lines, troubles."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import msgspec

Fields: TypeAlias = Mapping[str, msgspec.Raw]
Line: TypeAlias = dict[str, Any]
Say: TypeAlias = Callable[[Line], Awaitable[None]]


class SocketRequest(msgspec.Struct, frozen=True):
    """What a line says to us; what else is in it is the model's."""

    id: str | int
    op: str = "chat"
    model: str | None = None
    prompt: str | None = None


class OperationError(Exception):
    """Why a request is not answered: what its error line says."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
