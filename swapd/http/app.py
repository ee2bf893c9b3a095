"""The HTTP server: which path means what."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from swapd.http import management_routes, proxy_routes
from swapd.http.access_control import GUARD, AccessControl, expected, guarded
from swapd.http.context import APP_CONTEXT, AppContext
from swapd.http.errors import BODY_LIMIT, error_middleware

KEYED = frozenset(
    {
        *(proxy_routes.by_body, proxy_routes.by_path, management_routes.models),
        *(management_routes.one_model, management_routes.running, management_routes.openapi),
    }
)
"""What every key is good for, within its models; of what is in none of these sets, only admins'."""
OVERVIEW = frozenset({management_routes.metrics})
"""What tells of all models."""
PUBLIC = frozenset({management_routes.health})


def application(house: AppContext, guard: AccessControl | None) -> web.Application:
    """All routes over one house; without a guard, for those who are trusted."""
    limit = house.settings.max_body_bytes
    app = web.Application(client_max_size=limit, middlewares=[error_middleware])
    app[APP_CONTEXT] = house
    app[BODY_LIMIT] = limit
    how: dict[str, Any] = {}
    if guard is not None:
        app[GUARD] = guard
        app.middlewares.append(guarded)
        app.on_response_prepare.append(guard.mark)
        how["expect_handler"] = expected
    app.add_routes([web.post(path, proxy_routes.by_body, **how) for path in proxy_routes.BY_BODY])
    app.add_routes(
        [
            web.route("*", "/upstream/{rest:(?s:.+)}", proxy_routes.by_path, **how),
            web.get("/v1/models", management_routes.models, **how),
            web.get("/models", management_routes.models, **how),
            web.get("/v1/models/{name:.+}", management_routes.one_model, **how),
            web.get("/running", management_routes.running, **how),
            web.post("/load", management_routes.load, **how),
            web.post("/unload", management_routes.unload, **how),
            web.get("/unload", management_routes.unload, **how),
            web.get("/health", management_routes.health, **how),
            web.get("/metrics", management_routes.metrics, **how),
            web.get("/logs", management_routes.logs, **how),
            web.get("/openapi.json", management_routes.openapi, **how),
        ]
    )
    return app
