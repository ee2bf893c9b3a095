"""What the daemon itself goes by: settings that no decision of the core depends on.

Who may come in over HTTP, from where, and to what.

How long clients may take.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What a key opens. The key itself is known to nobody but its holder."""

    name: str
    digest: bytes = field(repr=False)
    """SHA-256 of the key."""
    models: tuple[str, ...] = ("*",)
    """Names of the models it is good for; `*` stands for any characters, `?` for one."""
    admin: bool = False
    """Whether it is good for everything: all models, loading and unloading, the logs, and all of a
    worker's paths."""
    rate: int = 0
    """Requests a minute; 0: no limit."""
    priority: int = 0
    """Added to the model's for each request that shows the key."""


@dataclass(frozen=True, slots=True)
class AccessRules:
    """The terms on which HTTP requests are let in. A reload changes them."""

    keys: tuple[ApiKey, ...] = ()
    """Without any, nobody needs one."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, beside the loopback's, by which clients may call this server."""
    allowed_origins: tuple[str, ...] = ()
    """Origins whose pages may read from it."""


@dataclass(frozen=True, slots=True)
class TlsPaths:
    """Files for HTTPS, in PEM; empty for plain HTTP."""

    cert: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the daemon listens and how it behaves as a server. Bytes and seconds."""

    host: str = "127.0.0.1"
    port: int = 5847
    max_body_bytes: int = 32 * 2**20
    client_timeout: float = 60.0
    """How long a client may take nothing of its answer, or send nothing of its request."""
    drain_timeout: float = 30.0
    """How long a shutdown lets running requests go on."""
    warm_standby: bool | None = None
    """Whether a worker without a model is kept waiting, which makes swaps cheaper and costs some
    40 MB; None: where there is memory enough."""
    pass_env: tuple[str, ...] = ()
    """Variables of swapd's environment that workers get beside the usual ones."""
    log_level: str = "info"
    include_aliases: bool = False
    """Whether aliases stand in the list of models too."""
    access: AccessRules = field(default_factory=AccessRules)
    tls: TlsPaths = field(default_factory=TlsPaths)


IDLE_TIMEOUT = 75.0
"""Seconds for which a connection may stay open between requests, or before the first one."""
HEAD_TIMEOUT = 20.0
LOOKS = 4
"""How many times a connection looks at itself within its patience."""


class BodyTimeoutError(Exception):
    """The rest of a request's body does not come; what to tell the client."""


@dataclass(frozen=True, slots=True)
class ClientTimeouts:
    """How long, in seconds, a client may take."""

    silence: float = 60.0
    """For sending nothing of a body, or taking nothing of an answer."""
    head: float = HEAD_TIMEOUT
    """For a request's head, from its first byte to its last."""
    idle: float = IDLE_TIMEOUT

    @property
    def look_every(self) -> float:
        return min(self.silence, self.head) / LOOKS
