"""Streams that another worker can go on with: what each event carries for that, and going on.

Whoever asks with `X-Swapd-Resumable: 1` gets an `id:` line with each event: the tokens that were
drawn since the event before it, and in the first also what is the same in all of the answer. With
the request as it was and these lines, up to any event, `/resume/PATH` goes on behind that event:
it lets the same tokens pass through the same samplers and parsers, and says nothing of what was
sent before.

A line is `HEAD;PLACE=TOKENS`. HEAD, in the first one only, is the answer's name, its time, its seed
and the identity of the worker that began it. PLACE is left out for the first of several answers.
TOKENS are numbers, `-` for none, or `.` for what comes when all answers have ended.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from workers.errors import ApiError
from workers.llama.model import Model
from workers.llama.sampler import NO_TOKEN, Grammar
from workers.requests.bodies import decode

HEADER = "X-Swapd-Resumable"
PREFIX = "/resume/"
CLOSING, NOTHING = ".", "-"
_LINE = re.compile(
    r"(?:(?P<name>[0-9a-f]{32})\.(?P<created>\d{1,12})\.(?P<seed>\d{1,10})\.(?P<of>[0-9a-f]*);)?"
    r"(?:(?P<place>\d{1,3})=)?(?P<tokens>[.-]|-?\d{1,9}(?:,-?\d{1,9})*)",
    re.ASCII,
)


@dataclass(frozen=True)
class ResponseIdentity:
    """What is the same in all of an answer, whoever gives which part of it."""

    name: str
    created: int
    seed: int
    """For its samplers, where nobody names another."""
    of: str
    """The identity of the worker that began it; one with another can't go on with it."""

    @classmethod
    def now(cls, identity: str) -> ResponseIdentity:
        """Of an answer that begins."""
        seed = int.from_bytes(os.urandom(4), "little") & 0x7FFFFFFF
        return cls(os.urandom(16).hex(), int(time.time()), seed, identity)

    @property
    def line(self) -> str:
        """As the first `id:` line has it."""
        return f"{self.name}.{self.created}.{self.seed}.{self.of};"


@dataclass
class ResumeState:
    """What there was of one answer."""

    tokens: list[int] = field(default_factory=list)
    events: int = 0
    """How many told of it."""


@dataclass(frozen=True)
class ResumedCall:
    """A request that may be answered by a stream of events."""

    body: bytes
    tenant: str
    """Who asks, as far as fairness goes; empty if the headers don't tell."""
    birth: ResponseIdentity
    resumable: bool
    past: Mapping[int, ResumeState] | None = None
    """What there was of each answer; None: it begins."""
    closed: int = 0
    """How many events came when all answers had ended."""

    def tokens(self, place: int) -> list[int]:
        """What was drawn of an answer before."""
        return self.past[place].tokens if self.past and place in self.past else []

    def events(self, place: int) -> int:
        """How many events told of it."""
        return self.past[place].events if self.past and place in self.past else 0

    @property
    def seed(self) -> int | None:
        """What samplers begin with where nobody names a seed; None: each draws its own."""
        return self.birth.seed if self.resumable else None


class Resumption(msgspec.Struct):
    """The body of /resume/PATH."""

    request: msgspec.Raw
    resume: list[str]


def call_of(path: str, headers: Mapping[str, str], body: bytes, identity: str) -> ResumedCall:
    """The request, or that which is to be gone on with. Raises ApiError 400, and 409 where that
    was begun by a worker with another model or other settings."""
    tenant = headers.get("X-Tenant-Id", "")
    if not path.startswith(PREFIX):
        return ResumedCall(body, tenant, ResponseIdentity.now(identity), headers.get(HEADER) == "1")
    given = decode(body, Resumption)
    return _resumed(bytes(given.request), tenant, given.resume, identity)


def _resumed(body: bytes, tenant: str, lines: list[str], identity: str) -> ResumedCall:
    birth, past, closed = ResponseIdentity.now(identity), dict[int, ResumeState](), 0
    for number, line in enumerate(lines):
        found = _LINE.fullmatch(line)
        if found is None or (found["name"] is None) != (number > 0):
            raise ApiError(
                400, f"`resume` has {line[:80]!r}, which no event of ours carries.", param="resume"
            )
        if found["name"] is not None:
            if found["of"] != identity:
                raise lost("it was begun with another model, or with other settings")
            birth = ResponseIdentity(
                found["name"], int(found["created"]), int(found["seed"]), identity
            )
        if found["tokens"] == CLOSING:
            closed += 1
            continue
        answer = past.setdefault(int(found["place"] or 0), ResumeState())
        if found["tokens"] != NOTHING:
            answer.tokens += map(int, found["tokens"].split(","))
        answer.events += 1
    return ResumedCall(body, tenant, birth, resumable=True, past=past, closed=closed)


def lost(why: str) -> ApiError:
    """The answer can't be gone on with."""
    return ApiError(409, f"The answer can't be gone on with: {why}.", code="not_resumable")


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
