"""What the handlers of one server share, and how they find it."""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp
from aiohttp import web

from swapd.doors.metrics import Metrics
from swapd.effects.logs import Logs
from swapd.supervisor import Supervisor
from swapd.words.catalog import ModelSpec
from swapd.words.settings import Settings


@dataclass(slots=True)
class House:
    """One running swapd, as its doors see it."""

    supervisor: Supervisor
    session: aiohttp.ClientSession
    metrics: Metrics
    logs: Logs
    settings: Settings
    started: float
    """Seconds since 1970."""

    def listed(self) -> list[ModelSpec]:
        """The models that are shown to clients, by name."""
        models = self.supervisor.catalog.models.values()
        return sorted((m for m in models if not m.unlisted), key=lambda m: m.name)


HOUSE: web.AppKey[House] = web.AppKey("house", House)
