"""How long clients may take."""

from __future__ import annotations

from dataclasses import dataclass

IDLE = 75.0
"""Seconds for which a connection may stay open between requests, or before the first one."""
HEAD_LONGEST = 20.0
LOOKS = 4
"""How many times a connection looks at itself within its patience."""


class SlowBodyError(Exception):
    """The rest of a request's body does not come; what to tell the client."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long, in seconds, a client may take."""

    silence: float = 60.0
    """For sending nothing of a body, or taking nothing of an answer."""
    head: float = HEAD_LONGEST
    """For a request's head, from its first byte to its last."""
    idle: float = IDLE

    @property
    def look_every(self) -> float:
        return min(self.silence, self.head) / LOOKS
