"""Access-control middleware: checks host, origin, API key, scope and body size of every request."""

from __future__ import annotations

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from swapd.domain.settings import AccessRules
from swapd.http import errors
from swapd.http.api_keys import AUTHENTICATED, KeyStore, Principal
from swapd.http.origins import OriginPolicy, split_target
from swapd.metrics import Metrics
from swapd.system.aio import now

CHALLENGE = 'Bearer realm="swapd", Basic realm="swapd"'
CHECKED: web.RequestKey[bool] = web.RequestKey("checked", bool)
"""Key set on requests that access control has checked already."""
PREFLIGHT_MAX_AGE = "600"
"""Seconds for which a browser may cache the response to a preflight request."""
EXPOSED_HEADERS = "Retry-After, X-Request-Id"
"""Response headers that pages of allowed origins may read."""


class AccessControl:
    """The access rules in force, applied to one request at a time."""

    def __init__(
        self,
        rules: AccessRules,
        *,
        loopback: bool,
        body_limit: int,
        metrics: Metrics,
        public: frozenset[Handler],
        keyed: frozenset[Handler],
        overview: frozenset[Handler],
    ) -> None:
        """Create the access control of one listener.

        `public` handlers need no key, `keyed` ones any key, `overview` ones a key for all models;
        all others need the admin scope. `loopback` is True if only this machine can connect.
        """
        self._loopback = loopback
        self._body_limit = body_limit
        self._metrics = metrics
        self._public = public
        self._keyed = keyed
        self._overview = overview
        self._keys = KeyStore(())
        self.set_rules(rules)

    def set_rules(self, rules: AccessRules) -> None:
        """Replace the rules, for all later requests."""
        self._keys = KeyStore(rules.keys, self._keys)
        self._origins = OriginPolicy(self._loopback, rules)

    @property
    def needs_keys(self) -> bool:
        """True if requests need an API key."""
        return not self._keys.is_empty

    def rejection(self, request: web.Request) -> web.Response | None:
        """Return the error response to a request that is not permitted, or None."""
        rejected = (
            self._check_origin(request) or self._check_key(request) or self._check_size(request)
        )
        if rejected is None:
            return None
        response, reason = rejected
        if reason:
            self._metrics.http_rejected(reason)
        if not request.content.is_eof():
            # Reading the rest of the body would cost more than a new connection.
            response.force_close()
        return response

    def _check_origin(self, request: web.Request) -> tuple[web.Response, str] | None:
        headers = request.headers
        if hdrs.HOST not in headers and request.version >= (1, 1):
            return errors.error_response(400, "the request has no Host header"), "host"
        # A request can name the server in its target too, as requests to a proxy do.
        named = (headers.get(hdrs.HOST), split_target(request.raw_path)[0] or None)
        for host in named:
            if host is not None and not self._origins.allows_host(host):
                message = (
                    f"{host[:200]!r} is not a name of this server: "
                    "to allow it, add it to allowed_hosts in the configuration"
                )
                return _forbidden(message, "host_not_allowed"), "host"
        origin = self._origins.foreign_origin(headers)
        if origin:
            message = (
                f"pages of {origin[:200]!r} may not use this server: to allow them, "
                "add their origin to cors.allowed_origins in the configuration"
            )
            return _forbidden(message, "origin_not_allowed"), "origin"
        is_preflight = hdrs.ORIGIN in headers and hdrs.ACCESS_CONTROL_REQUEST_METHOD in headers
        if request.method == hdrs.METH_OPTIONS and is_preflight:
            return _preflight(request), ""
        return None

    def _check_key(self, request: web.Request) -> tuple[web.Response, str] | None:
        if self._keys.is_empty:
            return None
        authenticated = self._keys.authenticate(request.headers)
        handler = request.match_info.handler
        if authenticated is None:
            if handler in self._public:
                return None
            return _unauthorized(request), "key"
        request[AUTHENTICATED] = authenticated
        principal = authenticated.principal
        is_limited = bool(principal.key.rate) and handler not in self._public
        wait = principal.rate_limiter.take(now()) if is_limited else 0.0
        if wait:
            name, rate = principal.key.name, principal.key.rate
            message = f"the key {name!r} is limited to {rate} requests a minute"
            return errors.error_response(
                429, message, "rate_limit_error", "rate_limit_exceeded", retry_after=wait
            ), "rate"
        if not self._is_in_scope(principal, request):
            message = f"the key {principal.key.name!r} does not permit {request.path[:200]}"
            return _forbidden(message, "scope"), "scope"
        return None

    def _is_in_scope(self, principal: Principal, request: web.Request) -> bool:
        match = request.match_info
        if principal.key.admin or match.http_exception is not None:
            return True
        handler = match.handler
        if handler in self._overview:
            return principal.all_models
        return handler in self._keyed or handler in self._public

    def _check_size(self, request: web.Request) -> tuple[web.Response, str] | None:
        length = request.content_length
        if length is not None and length > self._body_limit:
            return errors.too_large(self._body_limit), "size"
        return None

    async def add_cors_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add CORS headers to a response to a page of an allowed origin.

        CORS headers of a worker are removed, because the worker's rules do not apply here.
        """
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None:
            return
        for name in [n for n in response.headers if n.lower().startswith("access-control-")]:
            if request.method != hdrs.METH_OPTIONS:
                response.headers.popall(name, None)
        if self._origins.allows(origin):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED_HEADERS
            response.headers.add(hdrs.VARY, hdrs.ORIGIN)


def _forbidden(message: str, code: str) -> web.Response:
    return errors.error_response(403, message, "permission_error", code)


def _unauthorized(request: web.Request) -> web.Response:
    if hdrs.AUTHORIZATION in request.headers or "x-api-key" in request.headers:
        message, code = "the API key is not valid for this server", "invalid_api_key"
    else:
        message, code = (
            "an API key is required: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
            "missing_api_key",
        )
    response = errors.error_response(401, message, "authentication_error", code)
    response.headers[hdrs.WWW_AUTHENTICATE] = CHALLENGE
    return response


def _preflight(request: web.Request) -> web.Response:
    """Return the response to a CORS preflight request of an allowed origin."""
    headers: dict[str, str] = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, PUT, PATCH, DELETE",
        hdrs.ACCESS_CONTROL_MAX_AGE: PREFLIGHT_MAX_AGE,
    }
    if requested := request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS):
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = requested
    if request.headers.get("Access-Control-Request-Private-Network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return web.Response(status=204, headers=headers)


ACCESS_CONTROL: web.AppKey[AccessControl] = web.AppKey("access_control", AccessControl)


@web.middleware
async def access_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Reject requests that are not permitted and were not checked before."""
    if CHECKED not in request:
        rejected = request.app[ACCESS_CONTROL].rejection(request)
        if rejected is not None:
            return rejected
    return await handler(request)


async def expect_handler(request: web.Request) -> web.StreamResponse | None:
    """Handle `Expect: 100-continue`: the body is requested only if the request is permitted."""
    request[CHECKED] = True
    rejected = request.app[ACCESS_CONTROL].rejection(request)
    if rejected is not None:
        return rejected
    if request.headers[hdrs.EXPECT].lower() != "100-continue":
        return errors.error_response(417, "the only supported expectation is 100-continue")
    if request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # These bytes are not part of the response itself.
        request.writer.output_size = 0
    return None
