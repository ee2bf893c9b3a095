"""The contract between a worker and its supervisor, shared by both sides.

The supervisor starts a worker with the environment variable `SWAPD_READY_FD`, the number of an
inherited descriptor. The worker writes JSON lines to it: one `ReadyMessage` or one `LoadFailure`,
then a `Heartbeat` for each second in which its requests made progress. Standard input is the other
connection: when it ends, the supervisor is gone and the worker exits.

Requests and responses travel over HTTP, with the headers below. A stream that was requested with
`X-Swapd-Resumable: 1` carries an event id in front of each event. With the original request and
these ids, up to any event, another worker continues the answer behind that event at `/resume/PATH`.

An event id is `HEAD;CHOICE=TOKENS`. HEAD stands in the first id only: name, creation time and seed
of the answer, and the identity of the worker that began it, joined by dots. CHOICE is left out for
the first of several choices. TOKENS are the tokens sampled since the previous event, joined by
commas; `-` for none; `.` for an event behind the end of all choices.

Both programs import this module, so it uses the standard library alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, TypeAlias

READY_FD = "SWAPD_READY_FD"
"""Environment variable with the number of the descriptor for the messages."""

RESUMABLE_HEADER = "X-Swapd-Resumable"
"""Request header: `1` requests event ids, by which another worker can continue the stream."""
DRAINING_HEADER = "X-Swapd-Draining"
"""Response header: the worker is shutting down, and another worker has to serve the request."""
PROGRESS_HEADER = "X-Swapd-Progress"
"""Request header of clients: `1` requests comments about the queue position while waiting."""


@dataclass(frozen=True)
class DeviceReport:
    """A device beside the CPU on which a worker computes, with its memory in bytes."""

    name: str
    total: int = 0
    free: int = 0
    """Bytes free after the worker had loaded."""
    held: int = 0
    """Bytes that loading took."""


@dataclass(frozen=True)
class ReadyMessage:
    """Report that the worker listens and its model is loaded."""

    host: str = "127.0.0.1"
    port: int = 0
    pid: int = 0
    model: str = ""
    slots: int = 0
    """Requests that the worker serves at a time."""
    context: int = 0
    """Longest sequence, in tokens."""
    cells: int = 0
    """Cells of the KV cache, in tokens."""
    load_seconds: float = 0.0
    resumable: bool = False
    """True if the worker writes event ids on request."""
    devices: tuple[DeviceReport, ...] = ()
    ready: bool = True


@dataclass(frozen=True)
class LoadFailure:
    """Report that the worker will not become ready."""

    error: str
    """The reason, in one sentence."""


@dataclass(frozen=True)
class Heartbeat:
    """Report that the worker makes progress with its requests."""

    beat: int
    """Engine steps computed so far."""


Message: TypeAlias = ReadyMessage | LoadFailure | Heartbeat

_KINDS: dict[str, type[Message]] = {"ready": ReadyMessage, "error": LoadFailure, "beat": Heartbeat}


def encode_message(message: Message) -> bytes:
    """Return the line that a worker writes for this message."""
    return json.dumps(asdict(message)).encode() + b"\n"


def message_type(fields: Mapping[str, object]) -> type[Message]:
    """Return the type of a decoded line. Raise ValueError if it is none of the three."""
    for name, kind in _KINDS.items():
        if name in fields:
            return kind
    raise ValueError(f"a message has one of the fields {', '.join(_KINDS)}")


RESUME_PREFIX = "/resume"
"""First part of the path at which a worker continues an answer."""
NO_TOKENS = "-"
ALL_ENDED = "."
EVENT_END = b"\n\n"
_ID_FIELD = b"id: "
_ID = re.compile(
    r"(?:(?P<name>[0-9a-f]{32})\.(?P<created>\d{1,12})\.(?P<seed>\d{1,10})\."
    r"(?P<worker>[0-9a-f]*);)?"
    r"(?:(?P<choice>\d{1,3})=)?(?P<tokens>[.-]|-?\d{1,9}(?:,-?\d{1,9})*)",
    re.ASCII,
)


class StreamHead(NamedTuple):
    """The part of an answer's first event id that all workers of the answer share."""

    name: str
    created: int
    seed: int
    worker: str
    """Identity of the worker that began the answer."""

    def encode(self) -> str:
        """Return the text in front of the first id."""
        return f"{self.name}.{self.created}.{self.seed}.{self.worker};"


class EventId(NamedTuple):
    """A parsed event id."""

    head: StreamHead | None
    choice: int
    tokens: tuple[int, ...]
    all_ended: bool


def encode_tokens(choice: int, tokens: Sequence[int]) -> str:
    """Return the id of an event of this choice, without a head."""
    text = ",".join(map(str, tokens)) or NO_TOKENS
    return f"{choice}={text}" if choice else text


def parse_event_id(text: str) -> EventId | None:
    """Parse one event id; return None if it is malformed."""
    found = _ID.fullmatch(text)
    if found is None:
        return None
    head = None
    if found["name"] is not None:
        head = StreamHead(found["name"], int(found["created"]), int(found["seed"]), found["worker"])
    written = found["tokens"]
    tokens = () if written in (ALL_ENDED, NO_TOKENS) else tuple(map(int, written.split(",")))
    return EventId(head, int(found["choice"] or 0), tokens, written == ALL_ENDED)


def add_event_id(event_id: str, event: bytes) -> bytes:
    """Return an event, or the first of several, with this id in front."""
    return _ID_FIELD + event_id.encode() + b"\n" + event


def split_event_id(event: bytes) -> tuple[bytes | None, bytes]:
    """Return the id of an event, or None, and the event without it."""
    if not event.startswith(_ID_FIELD):
        return None, event
    line, _, rest = event.partition(b"\n")
    return line[len(_ID_FIELD) :], rest


def has_one_event_id(events: bytes) -> bool:
    """Return True if the bytes begin with an id and no other line of them is one."""
    return events.startswith(_ID_FIELD) and events.find(b"\n" + _ID_FIELD) < 0


def encode_resumption(request: bytes, event_ids: Sequence[str]) -> bytes:
    """Return the body of a request to `/resume/PATH`. `request` is a JSON text."""
    return b'{"request":' + request + b',"resume":' + json.dumps(list(event_ids)).encode() + b"}"
