"""What the handlers of one server share, and how they find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from swapd.domain.model_names import ModelNames
from swapd.domain.models import ModelSpec
from swapd.domain.settings import HEAD_TIMEOUT, ClientTimeouts, ServerSettings
from swapd.http.api_keys import Principal
from swapd.metrics import Metrics
from swapd.proxy.retry import ForwardingContext
from swapd.supervisor import Supervisor
from swapd.system.aio import now
from swapd.system.logs import Logs
from swapd.system.memory_trim import MemoryTrimmer


@dataclass(slots=True)
class AppContext:
    """One running swapd, as its doors see it."""

    supervisor: Supervisor
    session: aiohttp.ClientSession
    metrics: Metrics
    logs: Logs
    settings: ServerSettings
    heap: MemoryTrimmer
    started: float
    """Seconds since 1970."""
    since: float = field(default_factory=now)
    """The same by the clock that nobody sets."""
    reread: Callable[[], str] = str
    """Read the configuration again at once; why it is not used, empty if it is."""
    _names: ModelNames | None = None

    def names(self, grant: Principal | None = None) -> ModelNames:
        """The names of all models, or of those that a key is good for: to whoever shows it, there
        are no others."""
        catalog = self.supervisor.catalog
        if grant is not None and not grant.all_models:
            return grant.names(catalog)
        if self._names is None or self._names.catalog is not catalog:
            self._names = ModelNames(catalog)
        return self._names

    def find(self, name: str, grant: Principal | None = None) -> ModelSpec:
        """The model that a client means by `name`. Raises NoModelError."""
        return self.names(grant).find(name)

    @property
    def forwarding(self) -> ForwardingContext:
        """The parts of this that forwarding a request needs."""
        return ForwardingContext(self.supervisor, self.metrics, self.heap, self.logs.own)

    @property
    def patience(self) -> ClientTimeouts:
        """How long clients may take."""
        silence = self.settings.client_timeout
        return ClientTimeouts(silence, min(silence, HEAD_TIMEOUT))

    def listed(self, grant: Principal | None = None) -> list[ModelSpec]:
        """The models that are shown to clients, by name."""
        models = self.names(grant).catalog.models.values()
        return sorted((m for m in models if not m.presentation.unlisted), key=lambda m: m.name)

    def states(self) -> dict[str, str]:
        """State by model; where one worker takes another's place, of the one that serves."""
        sights = sorted(self.supervisor.snapshots(), key=lambda s: s.status.state == "ready")
        return {s.status.model: s.status.state for s in sights}


APP_CONTEXT: web.AppKey[AppContext] = web.AppKey("house", AppContext)
