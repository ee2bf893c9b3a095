"""What swapd says of itself: models, workers, health, metrics, logs; and unloading."""

from __future__ import annotations

import shlex
from typing import Any

import msgspec
from aiohttp import web

from swapd.config.errors import did_you_mean
from swapd.domain.model_names import adapters_of
from swapd.domain.models import ModelSpec
from swapd.http import errors
from swapd.http.access_control import GUARD
from swapd.http.api_keys import AUTHENTICATED, Principal, principal_of
from swapd.http.content_encoding import read_body
from swapd.http.context import APP_CONTEXT, AppContext
from swapd.leases import RejectedError, WorkerSnapshot
from swapd.system.aio import now
from swapd.system.redact import redact_argv


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json"
    )


async def models(request: web.Request) -> web.Response:
    """`/v1/models`: OpenAI's list, with context length and state."""
    house = request.app[APP_CONTEXT]
    states = house.states()
    data = []
    for spec in house.listed(principal_of(request)):
        data.append(_card(house, spec, spec.name, states))
        for adapter in adapters_of(spec):
            card = _card(house, spec, f"{spec.name}:{adapter}", states)
            data.append({**card, "parent": spec.name})
        if house.settings.include_aliases:
            data += [_card(house, spec, alias, states) for alias in spec.presentation.aliases]
    return _json({"object": "list", "data": data})


def _card(house: AppContext, spec: ModelSpec, name: str, states: dict[str, str]) -> dict[str, Any]:
    card: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": int(house.started),
        "owned_by": "swapd",
        "state": states.get(spec.name, "unloaded"),
    }
    if spec.launch.context:
        card["context_length"] = spec.launch.context
    if spec.presentation.title:
        card["name"] = spec.presentation.title
    if spec.presentation.description:
        card["description"] = spec.presentation.description
    if spec.presentation.metadata:
        card["meta"] = dict(spec.presentation.metadata)
    return card


async def one_model(request: web.Request) -> web.Response:
    """`/v1/models/<name>`: one entry of the list."""
    house = request.app[APP_CONTEXT]
    name = request.match_info["name"]
    spec = house.find(name, principal_of(request))
    states = house.states()
    return _json(_card(house, spec, name, states))


async def running(request: web.Request) -> web.Response:
    """`GET /running`: every worker alive, in llama-swap's shape with more beside it.

    Who has a key sees the workers of its models; their commands and addresses are for admins.
    """
    house, grant = request.app[APP_CONTEXT], principal_of(request)
    seen = [sight for sight in house.supervisor.snapshots() if _visible(house, sight, grant)]
    shown = [_worker(house, sight) for sight in seen]
    if grant is not None and not grant.key.admin:
        shown = [{**worker, "cmd": "", "proxy": ""} for worker in shown]
    return _json({"running": shown})


def _visible(house: AppContext, sight: WorkerSnapshot, grant: Principal | None) -> bool:
    if grant is None or grant.all_models:
        return True
    spec = house.supervisor.catalog.models.get(sight.status.model)
    return spec is not None and grant.opens(spec)


def _worker(house: AppContext, sight: WorkerSnapshot) -> dict[str, Any]:
    status = sight.status
    spec = house.supervisor.catalog.models.get(status.model)
    moment = house.supervisor.now()
    idle = None if status.idle_since is None else moment - status.idle_since
    expires_in = None if status.expires_at is None else max(0.0, status.expires_at - moment)
    return {
        "model": status.model,
        "state": status.state,
        "cmd": shlex.join(redact_argv(sight.argv)),
        "proxy": sight.base_url,
        "ttl": spec.serving.ttl if spec else 0,
        "name": spec.presentation.title if spec else "",
        "description": spec.presentation.description if spec else "",
        "pid": sight.pid,
        "started": sight.started,
        "busy": status.busy,
        "slots": status.slots,
        "waiting": house.supervisor.waiting(status.model),
        "idle_seconds": idle,
        "expires_in_seconds": expires_in,
        "last_progress_seconds": sight.since_progress,
        **house.metrics.faults(status.model),
        "bytes": status.bytes,
        "devices": [msgspec.to_builtins(device) for device in sight.devices],
        "context": spec.launch.context if spec else 0,
    }


async def load(request: web.Request) -> web.Response:
    """`POST /load?model=`: the model's worker is ready on return, or the reason why not is."""
    house = request.app[APP_CONTEXT]
    name = await _named(request)
    if name is None:
        raise errors.BadRequestError("name the model to load: ?model=NAME, or 'model' in JSON")
    spec = house.find(name)
    try:
        await house.supervisor.load(spec.name)
    except RejectedError as error:
        return errors.rejection_response(error.rejection)
    return _json({"msg": "ok", "loaded": spec.name})


async def unload(request: web.Request) -> web.Response:
    """`POST /unload?model=` one model, `GET /unload` all: idle workers are gone on return."""
    house = request.app[APP_CONTEXT]
    name = await _named(request)
    spec = house.find(name) if name is not None else None
    concerned = await house.supervisor.unload(spec.name if spec else None)
    return _json({"msg": "ok", "unloaded": concerned})


async def _named(request: web.Request) -> str | None:
    """The model that query or body name; None when neither does. Raises BadRequestError.

    What is not understood is refused: taken for nothing, it would mean all models.
    """
    said: dict[str, object] = {}
    body = await read_body(request, request.app[APP_CONTEXT].settings.max_body_bytes)
    if body.strip():
        try:
            said = msgspec.json.decode(body, type=dict[str, object])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise errors.BadRequestError(f"the body is not a JSON object: {error}") from error
        except RecursionError as error:
            raise errors.BadRequestError("the body is nested too deeply") from error
    names = [*request.query.getall("model", []), *([said["model"]] if "model" in said else [])]
    for field in (*request.query, *said):
        if field != "model":
            hint = did_you_mean(field, ["model"])
            message = f"{request.path} knows no {field[:40]!r}{hint or '; it knows model'}"
            raise errors.BadRequestError(message)
    for name in names:
        if not isinstance(name, str) or not name:
            raise errors.BadRequestError("'model' must be a model's name", "model")
    if len(set(names)) > 1:
        raise errors.BadRequestError("'model' is given twice; name one model", "model")
    return str(names[0]) if names else None


async def health(request: web.Request) -> web.Response:
    """Whether new requests are taken, and what is loaded."""
    house, grant = request.app[APP_CONTEXT], principal_of(request)
    seen = (sight for sight in house.supervisor.snapshots() if _visible(house, sight, grant))
    loaded = [sight.status.model for sight in seen if sight.status.state == "ready"]
    if house.supervisor.closing:
        return errors.error_response(
            503, "swapd is shutting down", "unavailable_error", "shutting_down", retry_after=5
        )
    guard = request.app.get(GUARD)
    if guard is not None and guard.needs_keys and AUTHENTICATED not in request:
        # Without a key one learns that swapd is well, and no more.
        return _json({"status": "ok"})
    uptime = round(now() - house.since, 1)
    return _json({"status": "ok", "loaded": loaded, "uptime_seconds": uptime})


async def metrics(request: web.Request) -> web.Response:
    """Prometheus' text format."""
    return web.Response(
        body=request.app[APP_CONTEXT].metrics.text(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )


async def openapi(request: web.Request) -> web.Response:  # noqa: ARG001
    """The description of all this. Made when it is asked for, which is seldom."""
    from swapd.http.openapi import document

    return _json(document())


async def logs(request: web.Request) -> web.Response:
    """The last lines of swapd's log, or with `?model=` of that model's workers."""
    house = request.app[APP_CONTEXT]
    name = request.query.get("model", "")
    spec = house.find(name) if name else None
    lines = house.logs.last(spec.name if spec else "")
    return web.Response(text="".join(f"{line}\n" for line in lines))
