"""Resumable streams: the `id:` lines of events, and requests that resume after one of them.

With the header `X-Swapd-Resumable: 1`, each event has an `id:` line with the tokens drawn since
the previous event; the first line also has the response's identity. `/resume/PATH` takes the
original request with the lines up to any event, and continues the stream after that event: the
same tokens pass through the same samplers and parsers, and events that were sent are left out.
The format of the lines is that of `workers.protocol`.
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
    """Properties of a response that do not change when another worker resumes it."""

    @classmethod
    def now(cls, identity: str) -> ResponseIdentity:
        """Return the identity of a new response."""
        seed = int.from_bytes(os.urandom(4), "little") & 0x7FFFFFFF
        return cls(os.urandom(16).hex(), int(time.time()), seed, identity)


@dataclass
class ResumeState:
    """The part of one answer that was sent before."""

    tokens: list[int] = field(default_factory=list)
    events: int = 0
    """Number of events sent for it."""


@dataclass(frozen=True)
class ResumableCall:
    """A generation request: its body, and the state to resume from if it is not new."""

    body: bytes
    tenant: str
    """The tenant, for fairness; empty if the headers have none."""
    response_identity: ResponseIdentity
    resumable: bool
    sent: Mapping[int, ResumeState] | None = None
    """The part of each answer that was sent before; None for a new request."""
    closed: int = 0
    """Number of events sent after the end of all answers."""

    def tokens(self, place: int) -> list[int]:
        """Return the tokens of an answer that were drawn before."""
        return self.sent[place].tokens if self.sent and place in self.sent else []

    def events(self, place: int) -> int:
        """Return the number of events that were sent for an answer."""
        return self.sent[place].events if self.sent and place in self.sent else 0

    @property
    def seed(self) -> int | None:
        """Seed of the samplers if the request has none; None: each sampler draws its own."""
        return self.response_identity.seed if self.resumable else None


class Resumption(msgspec.Struct):
    """The body of /resume/PATH."""

    request: msgspec.Raw
    resume: list[str]


def parse_call(path: str, headers: Mapping[str, str], body: bytes, identity: str) -> ResumableCall:
    """Return a new request, or the one to resume.

    Raises ApiError 400, and 409 if a worker with another model or other settings started it.
    """
    tenant = headers.get("X-Tenant-Id", "")
    if not path.startswith(f"{RESUME_PREFIX}/"):
        return ResumableCall(
            body, tenant, ResponseIdentity.now(identity), headers.get(RESUMABLE_HEADER) == "1"
        )
    given = decode(body, Resumption)
    return _resumed(bytes(given.request), tenant, given.resume, identity)


def _resumed(body: bytes, tenant: str, lines: list[str], identity: str) -> ResumableCall:
    response_identity, past, closed = ResponseIdentity.now(identity), dict[int, ResumeState](), 0
    for number, line in enumerate(lines):
        event = parse_event_id(line)
        if event is None or (event.head is None) != (number > 0):
            raise ApiError(
                400,
                f"`resume` has {line[:80]!r}, which is not an event id of this API.",
                param="resume",
            )
        if event.head is not None:
            if event.head.worker != identity:
                raise not_resumable("it was started with another model or other settings")
            response_identity = ResponseIdentity(*event.head)
        if event.all_ended:
            closed += 1
            continue
        answer = past.setdefault(event.choice, ResumeState())
        answer.tokens += event.tokens
        answer.events += 1
    return ResumableCall(body, tenant, response_identity, resumable=True, sent=past, closed=closed)


def not_resumable(why: str) -> ApiError:
    """Return the error for a stream that cannot be resumed."""
    return ApiError(409, f"The stream can't be resumed: {why}.", code="not_resumable")


def check_resumed(tokens: list[int], limit: int, model: Model, grammar: Grammar | None) -> None:
    """Raise ApiError 409 unless `tokens` can start an answer of `limit` tokens after `grammar`.

    llama.cpp would fail at other tokens, or abort the process.
    """
    if len(tokens) > limit:
        raise not_resumable(f"its limit is {limit} tokens, and the events have {len(tokens)}")
    state = None if grammar is None else grammar.clone()
    for number, token in enumerate(tokens, 1):
        if not (0 <= token < model.n_vocab or (token == NO_TOKEN and number == len(tokens))):
            raise not_resumable(f"the model has no token {token}")
        if state is not None and model.piece(token) is not None:
            if not state.admits(token):
                raise not_resumable(f"token {number} of the events does not match its grammar")
            state.accept(token)
