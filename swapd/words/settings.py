"""What the daemon itself goes by: settings that no decision of the core depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

from swapd.words.access import Access, Tls


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the daemon listens and how it behaves as a server. Bytes and seconds."""

    host: str = "127.0.0.1"
    port: int = 5847
    max_body_bytes: int = 32 * 2**20
    client_timeout: float = 60.0
    """How long a client may take nothing of its answer, or send nothing of its request."""
    drain_grace: float = 30.0
    """How long a shutdown lets running requests go on."""
    spare: bool | None = None
    """Whether a worker without a model is kept waiting, which makes swaps cheaper and costs some
    40 MB; None: where there is memory enough."""
    pass_env: tuple[str, ...] = ()
    """Variables of swapd's environment that workers get beside the usual ones."""
    log_level: str = "info"
    include_aliases: bool = False
    """Whether aliases stand in the list of models too."""
    access: Access = field(default_factory=Access)
    tls: Tls = field(default_factory=Tls)
