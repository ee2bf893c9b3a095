"""The HTTP server: which path means what."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from swapd.doors import admin, proxy
from swapd.doors.errors import BODY_LIMIT, shaped
from swapd.doors.guard import GUARD, Guard, expected, guarded
from swapd.doors.house import HOUSE, House

KEYED = frozenset(
    {
        *(proxy.by_body, proxy.by_path, admin.models),
        *(admin.one_model, admin.running, admin.openapi),
    }
)
"""What every key is good for, within its models; of what is in none of these sets, only admins'."""
OVERVIEW = frozenset({admin.metrics})
"""What tells of all models."""
PUBLIC = frozenset({admin.health})


def application(house: House, guard: Guard | None) -> web.Application:
    """All routes over one house; without a guard, for those who are trusted."""
    limit = house.settings.max_body_bytes
    app = web.Application(client_max_size=limit, middlewares=[shaped])
    app[HOUSE] = house
    app[BODY_LIMIT] = limit
    how: dict[str, Any] = {}
    if guard is not None:
        app[GUARD] = guard
        app.middlewares.append(guarded)
        app.on_response_prepare.append(guard.mark)
        how["expect_handler"] = expected
    app.add_routes([web.post(path, proxy.by_body, **how) for path in proxy.BY_BODY])
    app.add_routes(
        [
            web.route("*", "/upstream/{rest:(?s:.+)}", proxy.by_path, **how),
            web.get("/v1/models", admin.models, **how),
            web.get("/models", admin.models, **how),
            web.get("/v1/models/{name:.+}", admin.one_model, **how),
            web.get("/running", admin.running, **how),
            web.post("/load", admin.load, **how),
            web.post("/unload", admin.unload, **how),
            web.get("/unload", admin.unload, **how),
            web.get("/health", admin.health, **how),
            web.get("/metrics", admin.metrics, **how),
            web.get("/logs", admin.logs, **how),
            web.get("/openapi.json", admin.openapi, **how),
        ]
    )
    return app
