"""Settings of the server: address, access rules, TLS files and client timeouts.

The scheduler depends on none of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key's permissions. Only the digest of the key is stored, never the key itself."""

    name: str
    digest: bytes = field(repr=False)
    """SHA-256 of the key."""
    models: tuple[str, ...] = ("*",)
    """Patterns of the permitted models' names; `*` stands for any characters, `?` for one."""
    admin: bool = False
    """True if everything is permitted: all models, loading and unloading, the logs, and every path
    of a worker."""
    rate: int = 0
    """Requests a minute; 0: no limit."""
    priority: int = 0
    """Added to the model's priority for each request with this key."""


@dataclass(frozen=True, slots=True)
class AccessRules:
    """Rules that admit or reject HTTP requests. A reload replaces them."""

    keys: tuple[ApiKey, ...] = ()
    """API keys; without any, requests need no key."""
    allowed_hosts: tuple[str, ...] = ()
    """Names of this server in `Host` headers, besides those of the loopback interface."""
    allowed_origins: tuple[str, ...] = ()
    """Origins whose pages may read responses of this server."""


@dataclass(frozen=True, slots=True)
class TlsPaths:
    """Files for HTTPS, in PEM; empty for plain HTTP."""

    cert: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Address and behaviour of the server. Sizes are in bytes, durations in seconds."""

    host: str = "127.0.0.1"
    port: int = 5847
    max_body_bytes: int = 32 * 2**20
    client_timeout: float = 60.0
    """Seconds in which a client may read nothing of its response or send nothing of its request."""
    drain_timeout: float = 30.0
    """Seconds for which a shutdown lets running requests go on."""
    warm_standby: bool | None = None
    """True if a worker process without a model is kept ready, which makes swaps faster and costs
    about 40 MB; None: only on machines with enough memory."""
    pass_env: tuple[str, ...] = ()
    """Variables of swapd's environment that workers inherit besides the usual ones."""
    log_level: str = "info"
    include_aliases: bool = False
    """True if the list of models includes aliases."""
    access: AccessRules = field(default_factory=AccessRules)
    tls: TlsPaths = field(default_factory=TlsPaths)


IDLE_TIMEOUT = 75.0
"""Seconds for which a connection may stay open between requests, or before the first one."""
HEAD_TIMEOUT = 20.0
"""Upper limit, in seconds, of the time for a request's head."""
CHECKS_PER_TIMEOUT = 4
"""Checks of a connection within its shortest timeout."""


class BodyTimeoutError(Exception):
    """The rest of a request's body did not arrive in time; the message is for the client."""


@dataclass(frozen=True, slots=True)
class ClientTimeouts:
    """Client timeouts, in seconds."""

    progress: float = 60.0
    """Longest time without progress in sending a body or reading a response."""
    head: float = HEAD_TIMEOUT
    """Longest time for a request's head, from its first byte to its last."""
    idle: float = IDLE_TIMEOUT
    """Longest time between requests, or before the first one."""

    @property
    def check_interval(self) -> float:
        """Seconds between two checks of a connection."""
        return min(self.progress, self.head) / CHECKS_PER_TIMEOUT
