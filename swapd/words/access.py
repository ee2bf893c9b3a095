"""Who may come in over HTTP, from where, and to what."""

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
class Access:
    """The terms on which HTTP requests are let in. A reload changes them."""

    keys: tuple[ApiKey, ...] = ()
    """Without any, nobody needs one."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, beside the loopback's, by which clients may call this server."""
    allowed_origins: tuple[str, ...] = ()
    """Origins whose pages may read from it."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Files for HTTPS, in PEM; empty for plain HTTP."""

    cert: str = ""
    key: str = ""
