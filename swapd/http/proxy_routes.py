"""Handlers that forward requests to workers, by the model in the body or in the path."""

from __future__ import annotations

import asyncio
import math
import re
from urllib.parse import unquote

import msgspec
from aiohttp import web

from swapd.domain.model_names import ModelNames, requested_adapter
from swapd.domain.models import ModelSpec
from swapd.http import errors
from swapd.http.api_keys import AUTHENTICATED, PermissionDeniedError, Principal, principal_of
from swapd.http.content_encoding import json_text, read_body
from swapd.http.context import APP_CONTEXT, AppContext
from swapd.http.origins import split_target
from swapd.leases import RejectedError, RequestOptions
from swapd.proxy.forward import Exchange, WorkerFailedError
from swapd.proxy.progress import ProgressReporter, wants_progress
from swapd.proxy.retry import ProxyRequest, forward_with_retry

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION = re.compile(r"(-?)((?:\d+(?:\.\d+)?(?:ms|s|m|h))+)")
DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
MAX_TENANT_LENGTH = 256
MAX_KEEP_ALIVE_LENGTH = 400
"""Bytes of a `keep_alive`, more than any number that is finite."""

STREAM_HEADERS = {"X-Accel-Buffering": "no"}
"""Headers that keep a proxy in front of swapd from buffering tokens."""

WITHOUT_SLOT = frozenset({"health", "slots", "props", "metrics", "v1/models", "models"})
"""Paths, as llama-server names them, that a worker answers without a slot."""

BY_BODY = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/rerank",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/completion",
    "/infill",
    "/rerank",
    "/tokenize",
    "/detokenize",
    "/apply-template",
)
"""Paths whose JSON body names a model. A worker need not support all of them."""

WITH_ANY_KEY = frozenset({path[1:] for path in BY_BODY} | {"health", "v1/models", "models"})
"""Paths of a worker for every key that permits its model. Other paths show or change slots,
adapters and settings, which concern all clients of the worker."""


NULL = msgspec.Raw(b"null")


class RoutingFields(msgspec.Struct):
    """The fields of a body that routing needs, undecoded: their values may be of any size."""

    model: msgspec.Raw = NULL
    user: msgspec.Raw = NULL
    keep_alive: msgspec.Raw = NULL
    stream: msgspec.Raw = NULL


decode = msgspec.json.Decoder(RoutingFields).decode


NO_FIELDS = RoutingFields()


def request_options(
    request: web.Request, principal: Principal | None, fields: RoutingFields = NO_FIELDS
) -> RequestOptions:
    """Return the options from a request's headers and body. Raises ValueError with a message.

    The tenant is `X-Tenant-Id`, else the body's `user` as in OpenAI's API; `keep_alive` is as in
    Ollama's API. The priority is the key's: if requests could set it, every client would raise it.
    """
    user = json_text(fields.user) or ""
    keep_alive = _keep_alive(fields.keep_alive)
    tenant = (request.headers.get("X-Tenant-Id", "") or user)[:MAX_TENANT_LENGTH]
    if principal is None:
        return RequestOptions(tenant, keep_alive)
    # Tenants of different keys are separate, even with equal names.
    tenant = f"{principal.key.name}/{tenant}"
    return RequestOptions(tenant, keep_alive, principal.key.priority)


def _keep_alive(value: msgspec.Raw) -> float | None:
    """Return the field in seconds; None if it is not set. Raises ValueError."""
    encoded = bytes(value)
    if encoded == b"null":
        return None
    return parse_keep_alive(
        msgspec.json.decode(encoded) if len(encoded) <= MAX_KEEP_ALIVE_LENGTH else None
    )


def parse_keep_alive(value: object) -> float:
    """Return Ollama's `keep_alive` in seconds; negative: for ever. Raises ValueError.

    The value is a number of seconds, also as text, or a duration such as `1h30m`.
    """
    try:
        seconds = _seconds(value)
    except OverflowError:
        seconds = math.inf
    if seconds is None:
        message = "'keep_alive' must be seconds or a duration such as \"5m\", negative for ever"
        raise ValueError(message)
    if not math.isfinite(seconds):
        raise ValueError("'keep_alive' is too large; a negative number means for ever")
    return seconds


def _seconds(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"-?\d+(?:\.\d+)?", text):
            return float(text)
        if match := DURATION.fullmatch(text):
            parts = DURATION_PART.findall(match[2])
            total = sum(float(number) * UNITS[unit] for number, unit in parts)
            return -total if match[1] else total
    return None


async def by_body(request: web.Request) -> web.StreamResponse:
    """Forward a request whose JSON body names its model."""
    context = request.app[APP_CONTEXT]
    body = await read_body(request, context.settings.max_body_bytes)
    # 1. The fields that routing needs.
    fields = _routing_fields(body)
    model = json_text(fields.model)
    if model is None:
        missing = bytes(fields.model) == b"null"
        message = "the body names no 'model'" if missing else "'model' must be a string"
        return errors.error_response(400, message, param="model")
    principal = principal_of(request)
    try:
        options = request_options(request, principal, fields)
    except ValueError as error:
        return errors.error_response(400, str(error), param="keep_alive")
    # 2. The model, and the body as its worker expects it.
    spec = context.find(model, principal)
    rewritten = _rewritten(spec, model, body)
    # 3. The response, with progress reports if the request or the model is set up for them.
    reports_progress = wants_progress(request, spec, bytes(fields.stream) == b"true")
    path = split_target(request.raw_path)[1]
    proxy_request = ProxyRequest(spec, path, rewritten, options, resumable=True)
    return await _forward(context, request, proxy_request, reports_progress)


async def by_path(request: web.Request) -> web.StreamResponse:
    """Forward `/upstream/<model>/<path>`: any path of a model's worker."""
    context = request.app[APP_CONTEXT]
    # The raw path, because the worker must receive percent-encoded characters unchanged.
    target = split_target(request.raw_path)[1]
    raw, question, query = target.removeprefix("/upstream/").partition("?")
    segments = raw.split("/")
    principal = principal_of(request)
    names = context.names(principal)
    spec, count = names.find_in_path([unquote(segment) for segment in segments])
    path = "/".join(segments[count:])
    if principal is not None and not principal.key.admin and path not in WITH_ANY_KEY:
        raise PermissionDeniedError(
            f"the key {principal.key.name!r} does not permit /{path} of a worker"
        )
    needs_slot = path.rstrip("/") not in WITHOUT_SLOT
    options = request_options(request, principal)
    body = await read_body(request, context.settings.max_body_bytes)
    if f"/{path}" in BY_BODY:
        body = _body_for(spec, names, body)
    return await _forward(
        context,
        request,
        ProxyRequest(spec, f"/{path}{question}{query}", body, options, needs_slot, resumable=True),
    )


def _routing_fields(body: bytes) -> RoutingFields:
    """Return the fields of a JSON body that routing needs. Raises BadRequestError."""
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"the body is not a JSON object: {error}"
        raise errors.BadRequestError(message if body.strip() else errors.EMPTY_BODY) from error
    except RecursionError as error:
        raise errors.BadRequestError("the body is nested too deeply") from error


def _body_for(spec: ModelSpec, names: ModelNames, body: bytes) -> bytes:
    """Return the body of a request whose path names the model. Raises BadRequestError.

    A worker reads the model from the body, so that must be the one that access was checked for.
    """
    field = _routing_fields(body).model
    if bytes(field) == b"null":
        return _rewritten(spec, spec.name, body)
    model = json_text(field)
    if model is None or names.find(model) is not spec:
        message = f"the path names the model {spec.name!r}; the body must name the same or none"
        raise errors.BadRequestError(message, "model")
    return _rewritten(spec, model, body)


def _rewritten(spec: ModelSpec, requested: str, body: bytes) -> bytes:
    """Return the body as the model's worker expects it; in most cases unchanged.

    Parsers differ in which of two equal keys counts, and some ignore case. So a body that might
    name a second model is written anew with the one that was checked.
    """
    name = spec.serving.upstream_name
    if not name and ":" in requested and requested != spec.name:
        adapter = requested_adapter(spec, requested)
        if adapter is None and requested.startswith(f"{spec.name}:"):
            # A tag such as :latest, which a built-in worker would read as an adapter's name.
            name = spec.name
        elif adapter is not None and not requested.endswith(f":{adapter}"):
            # A built-in worker accepts only the exact names of its adapters.
            name = f"{spec.name}:{adapter}"
    if not (name or spec.serving.drop_params or _is_ambiguous(body)):
        return body
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    for field in [key for key in fields if key != "model" and key.casefold() == "model"]:
        del fields[field]
    for field in spec.serving.drop_params:
        if field != "model":
            fields.pop(field, None)
    if name:
        fields["model"] = msgspec.Raw(msgspec.json.encode(name))
    return msgspec.json.encode(fields)


def _is_ambiguous(body: bytes) -> bool:
    """Return True if the body may have a second `model` key, in any case or escaped.

    No pattern: the time must be linear in the length, whatever the body holds.
    """
    return b"\\u" in body or body.lower().count(b'"model"') > 1


async def _forward(
    context: AppContext,
    request: web.Request,
    proxy_request: ProxyRequest,
    reports_progress: bool = False,
) -> web.StreamResponse:
    """Return the response of a worker, or an error response if no worker answers."""
    authenticated = request.get(AUTHENTICATED)
    withheld = authenticated.headers if authenticated is not None else ()
    exchange = Exchange(
        context.session, request, proxy_request.path, proxy_request.body, STREAM_HEADERS, withheld
    )
    meanwhile = None
    if reports_progress:
        log, spec = context.logs.own, proxy_request.spec
        meanwhile = ProgressReporter(context.supervisor, log, request, spec, exchange).until
    failure = None
    try:
        await forward_with_retry(context.forwarding, proxy_request, exchange, meanwhile)
    except RejectedError as error:
        failure = errors.rejection_response(error.rejection)
    except WorkerFailedError as error:
        failure = errors.error_response(502, str(error), "upstream_error", "worker_failed")
    except ConnectionResetError as error:
        # The client disconnected in the middle of its response.
        raise asyncio.CancelledError from error
    response = exchange.response
    if response is None:
        assert failure is not None, "without a response there is an error"
        return failure
    if failure is not None:
        await _abort(request, response, failure, exchange.is_within_event)
    return response


async def _abort(
    request: web.Request, response: web.StreamResponse, error: web.Response, is_within_event: bool
) -> None:
    """End an incomplete response so that the client can't take it for complete.

    A stream of events gets an error event. Then the connection is closed without the regular end
    of a response.
    """
    if response.content_type == "text/event-stream":
        # Without blank lines the error would become part of the unfinished event.
        await response.write(b"\n\n" * is_within_event + errors.error_event(error))
    response.force_close()
    if request.transport is not None:
        request.transport.close()
