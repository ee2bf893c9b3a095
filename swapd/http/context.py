"""Application context: the objects that all request handlers of one server share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from swapd.domain.model_names import ModelNames, ModelNamesCache
from swapd.domain.models import ModelSpec
from swapd.domain.settings import HEAD_TIMEOUT, ClientTimeouts, ServerSettings
from swapd.http.api_keys import Principal
from swapd.metrics import Metrics
from swapd.proxy.retry import ForwardingContext
from swapd.supervisor import Supervisor
from swapd.system.aio import now
from swapd.system.logs import Logs
from swapd.system.memory_trim import MemoryTrimmer


@dataclass(frozen=True, slots=True)
class AppContext:
    """Parts of a running server, built complete before the first request."""

    supervisor: Supervisor
    session: aiohttp.ClientSession
    metrics: Metrics
    logs: Logs
    settings: ServerSettings
    trimmer: MemoryTrimmer
    reload: Callable[[], str]
    """Function that reloads the configuration; returns an error message, or "" on success."""
    started: float
    """Time of the start, in seconds since 1970."""
    since: float = field(default_factory=now)
    """Time of the start, in seconds of the monotonic clock."""
    _all_names: ModelNamesCache = field(default_factory=ModelNamesCache)

    def names(self, principal: Principal | None = None) -> ModelNames:
        """Return the names of all models, or of those that the principal may use.

        For a principal, other models do not exist: error messages must not reveal them either.
        """
        catalog = self.supervisor.catalog
        if principal is not None and not principal.all_models:
            return principal.names(catalog)
        return self._all_names.of(catalog)

    def find(self, name: str, principal: Principal | None = None) -> ModelSpec:
        """Return the model that a client means by `name`. Raises ModelNotFoundError."""
        return self.names(principal).find(name)

    @property
    def forwarding(self) -> ForwardingContext:
        """The parts that forwarding a request needs."""
        return ForwardingContext(self.supervisor, self.metrics, self.trimmer, self.logs.own)

    @property
    def timeouts(self) -> ClientTimeouts:
        """Timeouts of client connections."""
        timeout = self.settings.client_timeout
        return ClientTimeouts(timeout, min(timeout, HEAD_TIMEOUT))

    def states(self) -> dict[str, str]:
        """Return the state of each running model; during a replacement that of the ready worker."""
        snapshots = sorted(self.supervisor.snapshots(), key=lambda s: s.status.state == "ready")
        return {s.status.model: s.status.state for s in snapshots}


APP_CONTEXT: web.AppKey[AppContext] = web.AppKey("context", AppContext)
