"""The HTTP application: routes, middlewares, and the scope that each handler needs."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from swapd.domain.settings import ServerSettings
from swapd.http import management_routes, proxy_routes
from swapd.http.access_control import (
    ACCESS_CONTROL,
    AccessControl,
    access_middleware,
    expect_handler,
)
from swapd.http.context import APP_CONTEXT, AppContext
from swapd.http.errors import BODY_LIMIT, error_middleware
from swapd.metrics import Metrics

KEYED = frozenset(
    {
        *(proxy_routes.by_body, proxy_routes.by_path, management_routes.models),
        *(management_routes.one_model, management_routes.running, management_routes.openapi),
    }
)
"""Handlers that every key permits, within its models; handlers in no set need the admin scope."""
OVERVIEW = frozenset({management_routes.metrics})
"""Handlers whose responses concern all models."""
PUBLIC = frozenset({management_routes.health})
"""Handlers that need no key."""


def access_control(settings: ServerSettings, metrics: Metrics, loopback: bool) -> AccessControl:
    """Return the access control of the TCP port, on which `loopback` clients alone can connect."""
    return AccessControl(
        settings.access,
        loopback=loopback,
        body_limit=settings.max_body_bytes,
        metrics=metrics,
        public=PUBLIC,
        keyed=KEYED,
        overview=OVERVIEW,
    )


def application(context: AppContext, access: AccessControl | None) -> web.Application:
    """Return the application; `access` is None on sockets whose clients are trusted."""
    limit = context.settings.max_body_bytes
    app = web.Application(client_max_size=limit, middlewares=[error_middleware])
    app[APP_CONTEXT] = context
    app[BODY_LIMIT] = limit
    options: dict[str, Any] = {}
    if access is not None:
        app[ACCESS_CONTROL] = access
        app.middlewares.append(access_middleware)
        app.on_response_prepare.append(access.add_cors_headers)
        options["expect_handler"] = expect_handler
    app.add_routes(
        [web.post(path, proxy_routes.by_body, **options) for path in proxy_routes.BY_BODY]
    )
    app.add_routes(
        [
            web.route("*", "/upstream/{rest:(?s:.+)}", proxy_routes.by_path, **options),
            web.get("/v1/models", management_routes.models, **options),
            web.get("/models", management_routes.models, **options),
            web.get("/v1/models/{name:.+}", management_routes.one_model, **options),
            web.get("/running", management_routes.running, **options),
            web.post("/load", management_routes.load, **options),
            web.post("/unload", management_routes.unload, **options),
            web.get("/unload", management_routes.unload, **options),
            web.get("/health", management_routes.health, **options),
            web.get("/metrics", management_routes.metrics, **options),
            web.get("/logs", management_routes.logs, **options),
            web.get("/openapi.json", management_routes.openapi, **options),
        ]
    )
    return app
