"""Resumption of streams that another worker began: event ids in, state of the answer out.

The format of the ids is that of `workers.protocol`. The tokens sent before pass through the same
samplers and parsers again, and the events that the client has are left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from workers.errors import ApiError
from workers.llama.model import Model
from workers.llama.sampler import NO_TOKEN, Grammar
from workers.protocol import RESUMABLE_HEADER, RESUME_PREFIX, StreamHead, parse_event_id
from workers.requests.bodies import decode


class ResponseIdentity(StreamHead):
    """The part of an answer that is the same whichever workers compute it."""

    @classmethod
    def now(cls, identity: str) -> ResponseIdentity:
        """Return the identity of an answer that begins now."""
        seed = int.from_bytes(os.urandom(4), "little") & 0x7FFFFFFF
        return cls(os.urandom(16).hex(), int(time.time()), seed, identity)


@dataclass
class ResumeState:
    """The part of one choice that was sent before."""

    tokens: list[int] = field(default_factory=list)
    events: int = 0
    """Number of events about it."""


@dataclass(frozen=True)
class ResumedCall:
    """A request that may be answered by a stream of events."""

    body: bytes
    tenant: str
    """Tenant for fair queueing; empty if the headers name none."""
    birth: ResponseIdentity
    resumable: bool
    past: Mapping[int, ResumeState] | None = None
    """State of each choice sent before; None for a new answer."""
    closed: int = 0
    """Number of events sent behind the end of all choices."""

    def tokens(self, place: int) -> list[int]:
        """Return the tokens of a choice that were sampled before."""
        return self.past[place].tokens if self.past and place in self.past else []

    def events(self, place: int) -> int:
        """Return the number of events about a choice that were sent before."""
        return self.past[place].events if self.past and place in self.past else 0

    @property
    def seed(self) -> int | None:
        """Default seed of the samplers; None lets each draw its own."""
        return self.birth.seed if self.resumable else None


class Resumption(msgspec.Struct):
    """The body of /resume/PATH."""

    request: msgspec.Raw
    resume: list[str]


def call_of(path: str, headers: Mapping[str, str], body: bytes, identity: str) -> ResumedCall:
    """Return the request, new or to be resumed.

    Raise ApiError 400, and 409 if a worker with another model or other settings began it.
    """
    tenant = headers.get("X-Tenant-Id", "")
    if not path.startswith(f"{RESUME_PREFIX}/"):
        return ResumedCall(
            body, tenant, ResponseIdentity.now(identity), headers.get(RESUMABLE_HEADER) == "1"
        )
    given = decode(body, Resumption)
    return _resumed(bytes(given.request), tenant, given.resume, identity)


def _resumed(body: bytes, tenant: str, lines: list[str], identity: str) -> ResumedCall:
    birth, past, closed = ResponseIdentity.now(identity), dict[int, ResumeState](), 0
    for number, line in enumerate(lines):
        event = parse_event_id(line)
        if event is None or (event.head is None) != (number > 0):
            raise ApiError(
                400, f"`resume` has {line[:80]!r}, which is no event id.", param="resume"
            )
        if event.head is not None:
            if event.head.worker != identity:
                raise lost("it was begun with another model, or with other settings")
            birth = ResponseIdentity(*event.head)
        if event.all_ended:
            closed += 1
            continue
        answer = past.setdefault(event.choice, ResumeState())
        answer.tokens += event.tokens
        answer.events += 1
    return ResumedCall(body, tenant, birth, resumable=True, past=past, closed=closed)


def lost(why: str) -> ApiError:
    """Return the error for an answer that can't be resumed."""
    return ApiError(409, f"The answer can't be resumed: {why}.", code="not_resumable")


def check_resumed(tokens: list[int], limit: int, model: Model, grammar: Grammar | None) -> None:
    """Raises ApiError 409 for tokens that are no beginning of an answer with this `limit`, which
    has to follow `grammar`: llama.cpp would fail at them, or end the process."""
    if len(tokens) > limit:
        raise lost(f"it has {limit} tokens at most, and {len(tokens)} were sent")
    place = None if grammar is None else grammar.clone()
    for number, token in enumerate(tokens, 1):
        if not (0 <= token < model.n_vocab or (token == NO_TOKEN and number == len(tokens))):
            raise lost(f"the model has no token {token}")
        if place is not None and model.piece(token) is not None:
            if not place.admits(token):
                raise lost(f"its form has no room for token {number} of those that were sent")
            place.accept(token)
