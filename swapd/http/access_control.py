"""Who is let in at the HTTP door. Every request passes here once, before anything else."""

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
SEEN: web.RequestKey[bool] = web.RequestKey("seen", bool)
"""Set when the guard has looked at a request already."""
PREFLIGHT_SECONDS = "600"
EXPOSED = "Retry-After, X-Request-Id"


class AccessControl:
    """Lets requests in, or says why not."""

    def __init__(
        self,
        access: AccessRules,
        *,
        loopback: bool,
        body_limit: int,
        metrics: Metrics,
        public: frozenset[Handler],
        keyed: frozenset[Handler],
        overview: frozenset[Handler],
    ) -> None:
        """`public` handlers need no key, `keyed` ones any, `overview` ones a key for all models;
        all others need the admin scope. `loopback` says that only this machine reaches us."""
        self._loopback = loopback
        self._body_limit = body_limit
        self._metrics = metrics
        self._public = public
        self._keyed = keyed
        self._overview = overview
        self._keyring = KeyStore(())
        self.change(access)

    def change(self, access: AccessRules) -> None:
        """From now on these terms are in force."""
        self._keyring = KeyStore(access.keys, self._keyring)
        self._origins = OriginPolicy(self._loopback, access)

    @property
    def needs_keys(self) -> bool:
        return not self._keyring.nobody_needs_one

    def rejection(self, request: web.Request) -> web.Response | None:
        """What to answer instead of doing what is asked; None for one that is let in."""
        refused = self._foreign(request) or self._keyless(request) or self._too_large(request)
        if refused is not None:
            response, reason = refused
            if reason:
                self._metrics.http_rejected(reason)
            if not request.content.is_eof():
                # What is still to come of it is not worth a place.
                response.force_close()
            return response
        return None

    def _foreign(self, request: web.Request) -> tuple[web.Response, str] | None:
        headers = request.headers
        if hdrs.HOST not in headers and request.version >= (1, 1):
            return errors.error_response(400, "the request has no Host header"), "host"
        # As to a proxy, a request can name the server in its target too.
        named = (headers.get(hdrs.HOST), split_target(request.raw_path)[0] or None)
        for host in named:
            if host is not None and not self._origins.knows_host(host):
                message = (
                    f"this server is not called {host[:200]!r}: "
                    "if it should be, add the name to allowed_hosts in the configuration"
                )
                return _forbidden(message, "host_not_allowed"), "host"
        origin = self._origins.stranger(headers)
        if origin:
            message = (
                f"pages of {origin[:200]!r} may not use this server: if they should, "
                "add their origin to cors.allowed_origins in the configuration"
            )
            return _forbidden(message, "origin_not_allowed"), "origin"
        asks_first = hdrs.ORIGIN in headers and hdrs.ACCESS_CONTROL_REQUEST_METHOD in headers
        if request.method == hdrs.METH_OPTIONS and asks_first:
            return _preflight(request), ""
        return None

    def _keyless(self, request: web.Request) -> tuple[web.Response, str] | None:
        if self._keyring.nobody_needs_one:
            return None
        opened = self._keyring.open(request.headers)
        handler = request.match_info.handler
        if opened is None:
            if handler in self._public:
                return None
            return _unauthorized(request), "key"
        request[AUTHENTICATED] = opened
        counts = bool(opened.grant.key.rate) and handler not in self._public
        wait = opened.grant.pace.take(now()) if counts else 0.0
        if wait:
            name, rate = opened.grant.key.name, opened.grant.key.rate
            message = f"the key {name!r} is good for {rate} requests a minute"
            return errors.error_response(
                429, message, "rate_limit_error", "rate_limit_exceeded", retry_after=wait
            ), "rate"
        if not self._within(opened.grant, request):
            message = f"the key {opened.grant.key.name!r} is not good for {request.path[:200]}"
            return _forbidden(message, "scope"), "scope"
        return None

    def _within(self, grant: Principal, request: web.Request) -> bool:
        match = request.match_info
        if grant.key.admin or match.http_exception is not None:
            return True
        handler = match.handler
        if handler in self._overview:
            return grant.all_models
        return handler in self._keyed or handler in self._public

    def _too_large(self, request: web.Request) -> tuple[web.Response, str] | None:
        length = request.content_length
        if length is not None and length > self._body_limit:
            return errors.too_large(self._body_limit), "size"
        return None

    async def mark(self, request: web.Request, response: web.StreamResponse) -> None:
        """Tell the browser of an allowed origin that its page may read the answer, and only then:
        what a worker says of other origins does not count."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None:
            return
        for name in [n for n in response.headers if n.lower().startswith("access-control-")]:
            if request.method != hdrs.METH_OPTIONS:
                response.headers.popall(name, None)
        if self._origins.allows(origin):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED
            response.headers.add(hdrs.VARY, hdrs.ORIGIN)


def _forbidden(message: str, code: str) -> web.Response:
    return errors.error_response(403, message, "permission_error", code)


def _unauthorized(request: web.Request) -> web.Response:
    shown = hdrs.AUTHORIZATION in request.headers or "x-api-key" in request.headers
    if shown:
        message, code = "the API key is not one of this server's", "invalid_api_key"
    else:
        message, code = (
            "an API key is needed: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
            "missing_api_key",
        )
    response = errors.error_response(401, message, "authentication_error", code)
    response.headers[hdrs.WWW_AUTHENTICATE] = CHALLENGE
    return response


def _preflight(request: web.Request) -> web.Response:
    """What a browser asks before it sends a page's request; the origin has been looked at."""
    headers: dict[str, str] = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, PUT, PATCH, DELETE",
        hdrs.ACCESS_CONTROL_MAX_AGE: PREFLIGHT_SECONDS,
    }
    if wanted := request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS):
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
    if request.headers.get("Access-Control-Request-Private-Network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return web.Response(status=204, headers=headers)


GUARD: web.AppKey[AccessControl] = web.AppKey("guard", AccessControl)


@web.middleware
async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Has the guard look at every request that it has not seen yet."""
    if SEEN not in request:
        refused = request.app[GUARD].rejection(request)
        if refused is not None:
            return refused
    return await handler(request)


async def expected(request: web.Request) -> web.StreamResponse | None:
    """`Expect: 100-continue`: the body is asked for only when the request is let in."""
    request[SEEN] = True
    refused = request.app[GUARD].rejection(request)
    if refused is not None:
        return refused
    if request.headers[hdrs.EXPECT].lower() != "100-continue":
        return errors.error_response(417, "the only thing to expect is 100-continue")
    if request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # The answer itself has not begun.
        request.writer.output_size = 0
    return None
