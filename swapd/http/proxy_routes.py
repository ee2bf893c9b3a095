"""Requests that go to a worker: found by the model they name, passed through as they are.

What a request says besides what the worker is to do: for whom it is, how to treat it.
"""

from __future__ import annotations

import asyncio
import math
import re
from urllib.parse import unquote

import msgspec
from aiohttp import web

from swapd.domain.model_names import adapter_in
from swapd.domain.models import ModelSpec
from swapd.http import errors
from swapd.http.api_keys import AUTHENTICATED, PermissionDeniedError, principal_of
from swapd.http.content_encoding import read_body
from swapd.http.context import APP_CONTEXT, AppContext
from swapd.http.origins import split_target
from swapd.leases import RejectedError, RequestOptions
from swapd.proxy.forward import Exchange, WorkerFailedError
from swapd.proxy.progress import ProgressReporter, wants_progress
from swapd.proxy.retry import ProxyRequest, forward_with_retry

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION = re.compile(r"(-?)((?:\d+(?:\.\d+)?(?:ms|s|m|h))+)")
PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")


class RoutingFields(msgspec.Struct):
    """The fields of a body that routing needs; all others are skipped over."""

    model: object = None
    user: object = None
    keep_alive: object = None
    stream: object = None


decode = msgspec.json.Decoder(RoutingFields).decode


def request_options(request: web.Request, named: RoutingFields) -> RequestOptions:
    """The wish in headers and body. Raises ValueError with a sentence.

    The tenant is `X-Tenant-Id`, else the body's `user` as OpenAI has it. `keep_alive` is Ollama's.
    The priority is the key's: what a request could ask for itself, everybody would.
    """
    user = named.user if isinstance(named.user, str) else ""
    keep_alive = None if named.keep_alive is None else parse_keep_alive(named.keep_alive)
    return RequestOptions(tenant_of(request, user), keep_alive, priority_of(request))


def tenant_of(request: web.Request, user: str = "") -> str:
    """For whom a request is. A key speaks for tenants of its own: it can't crowd another's."""
    tenant = (request.headers.get("X-Tenant-Id", "") or user)[:256]
    grant = principal_of(request)
    return tenant if grant is None else f"{grant.key.name}/{tenant}"


def priority_of(request: web.Request) -> int:
    """That of the key which the request shows."""
    grant = principal_of(request)
    return grant.key.priority if grant is not None else 0


def parse_keep_alive(value: object) -> float:
    """Ollama's `keep_alive`: seconds as a number or as text, or a duration such as `1h30m`.

    Negative: for ever. Raises ValueError.
    """
    try:
        found = _seconds(value)
    except OverflowError:
        found = math.inf
    if found is None:
        told = "'keep_alive' must be seconds or a duration such as \"5m\", negative for ever"
        raise ValueError(told)
    if not math.isfinite(found):
        raise ValueError("'keep_alive' is too large a number: what is negative means for ever")
    return found


def _seconds(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"-?\d+(?:\.\d+)?", text):
            return float(text)
        if whole := DURATION.fullmatch(text):
            total = sum(float(n) * UNITS[unit] for n, unit in PART.findall(whole[2]))
            return -total if whole[1] else total
    return None


STREAM_HEADERS = {"X-Accel-Buffering": "no"}
"""Tells a proxy before us not to hold tokens back."""

WITHOUT_SLOT = frozenset({"health", "slots", "props", "metrics", "v1/models", "models"})
"""What a worker answers beside its slots, as llama-server names it."""

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
"""Paths whose JSON body names a model; whether its worker knows them is the worker's affair."""

WITH_ANY_KEY = frozenset({path[1:] for path in BY_BODY} | {"health", "v1/models", "models"})
"""Paths of a worker for whoever may use its model. By others its slots, adapters and settings are
seen or changed, which are everybody's."""


async def by_body(request: web.Request) -> web.StreamResponse:
    """A request whose JSON body names its model."""
    house = request.app[APP_CONTEXT]
    body = await read_body(request, house.settings.max_body_bytes)
    try:
        named = decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        said = f"the body is not a JSON object: {error}"
        return errors.error_response(400, said if body.strip() else errors.EMPTY)
    except RecursionError:
        return errors.error_response(400, "the body is nested too deeply")
    if named.model is None:
        return errors.error_response(400, "the body names no 'model'", param="model")
    if not isinstance(named.model, str):
        return errors.error_response(400, "'model' must be a string", param="model")
    try:
        wish = request_options(request, named)
    except ValueError as error:
        return errors.error_response(400, str(error), param="keep_alive")
    spec = house.find(named.model, principal_of(request))
    rewritten = _rewritten(spec, named.model, body)
    told = wants_progress(request, spec, named.stream is True)
    path = split_target(request.raw_path)[1]
    passing = ProxyRequest(spec, path, rewritten, wish, asks_ids=True)
    return await _pass(house, request, passing, told)


async def by_path(request: web.Request) -> web.StreamResponse:
    """`/upstream/<model>/<path>`: any path of a model's worker, the model's name in the path.

    Names may have slashes in them: the longest beginning that is a name is taken.
    """
    house = request.app[APP_CONTEXT]
    # As the client wrote it: what is encoded in the path stays so for the worker.
    target = split_target(request.raw_path)[1]
    raw, question, query = target.removeprefix("/upstream/").partition("?")
    words = raw.split("/")
    grant = principal_of(request)
    catalog = house.names(grant).catalog
    for cut in range(len(words), 0, -1):
        spec = catalog.resolve(unquote("/".join(words[:cut])))
        if spec is not None:
            break
    else:
        spec, cut = house.find(unquote(words[0]), grant), 1
    path = "/".join(words[cut:])
    if grant is not None and not grant.key.admin and path not in WITH_ANY_KEY:
        raise PermissionDeniedError(
            f"the key {grant.key.name!r} is not good for /{path} of a worker"
        )
    needs_slot = path.rstrip("/") not in WITHOUT_SLOT
    wish = RequestOptions(tenant_of(request), priority=priority_of(request))
    body = await read_body(request, house.settings.max_body_bytes)
    return await _pass(
        house,
        request,
        ProxyRequest(spec, f"/{path}{question}{query}", body, wish, needs_slot, asks_ids=True),
    )


def _rewritten(spec: ModelSpec, asked: str, body: bytes) -> bytes:
    """The body as the model's worker wants it: mostly just as it came."""
    name = spec.serving.upstream_name
    if not name and ":" in asked and asked != spec.name:
        adapter = adapter_in(spec, asked)
        if adapter is None and asked.startswith(f"{spec.name}:"):
            # A tag such as :latest, which our worker would take for an adapter's name.
            name = spec.name
        elif adapter is not None and not asked.endswith(f":{adapter}"):
            # Our worker knows its adapters' names exactly.
            name = f"{spec.name}:{adapter}"
    if not (name or spec.serving.drop_params):
        return body
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    for field in spec.serving.drop_params:
        if field != "model":
            fields.pop(field, None)
    if name:
        fields["model"] = msgspec.Raw(msgspec.json.encode(name))
    return msgspec.json.encode(fields)


async def _pass(
    house: AppContext, request: web.Request, passing: ProxyRequest, told: bool = False
) -> web.StreamResponse:
    """Have workers answer the request; an error if none does."""
    opened = request.get(AUTHENTICATED)
    withheld = opened.headers if opened is not None else ()
    passage = Exchange(house.session, request, passing.path, passing.body, STREAM_HEADERS, withheld)
    meanwhile = None
    if told:
        log = house.logs.own
        meanwhile = ProgressReporter(house.supervisor, log, request, passing.spec, passage).until
    instead = None
    try:
        await forward_with_retry(house.forwarding, passing, passage, meanwhile)
    except RejectedError as error:
        instead = errors.rejection_response(error.rejection)
    except WorkerFailedError as error:
        instead = errors.error_response(502, str(error), "upstream_error", "worker_failed")
    except ConnectionResetError as error:
        # The client has gone in the middle of its answer.
        raise asyncio.CancelledError from error
    begun = passage.response
    if begun is None:
        assert instead is not None, "who has no answer has an error"
        return instead
    if instead is not None:
        await _break_off(request, begun, instead, passage.is_within_event)
    return begun


async def _break_off(
    request: web.Request, begun: web.StreamResponse, error: web.Response, is_within_event: bool
) -> None:
    """End an answer that can't be completed so that the client sees that it is not whole.

    A stream of events gets an error event; then the connection is closed without the ending that
    a whole answer has.
    """
    if begun.content_type == "text/event-stream":
        # What there is of an event would swallow the error.
        await begun.write(b"\n\n" * is_within_event + errors.error_event(error))
    begun.force_close()
    if request.transport is not None:
        request.transport.close()
