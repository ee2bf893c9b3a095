"""Handlers of swapd's own endpoints: models, workers, loading, health, metrics and logs."""

from __future__ import annotations

import shlex
from typing import Any

import msgspec
from aiohttp import web

from swapd.config.errors import did_you_mean
from swapd.domain.model_names import adapters_of
from swapd.domain.models import ModelSpec
from swapd.http import errors
from swapd.http.access_control import ACCESS_CONTROL
from swapd.http.api_keys import AUTHENTICATED, Principal, principal_of
from swapd.http.content_encoding import json_text, read_body
from swapd.http.context import APP_CONTEXT, AppContext
from swapd.leases import RejectedError, WorkerSnapshot
from swapd.system.aio import now
from swapd.system.redact import redact_argv


def _json_response(value: object, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json"
    )


async def models(request: web.Request) -> web.Response:
    """Handle `/v1/models`: OpenAI's list of models, with context length and state."""
    context = request.app[APP_CONTEXT]
    states = context.states()
    data = []
    for spec in context.names(principal_of(request)).listed():
        data.append(_model_info(context, spec, spec.name, states))
        for adapter in adapters_of(spec):
            info = _model_info(context, spec, f"{spec.name}:{adapter}", states)
            data.append({**info, "parent": spec.name})
        if context.settings.include_aliases:
            aliases = spec.presentation.aliases
            data += [_model_info(context, spec, alias, states) for alias in aliases]
    return _json_response({"object": "list", "data": data})


def _model_info(
    context: AppContext, spec: ModelSpec, name: str, states: dict[str, str]
) -> dict[str, Any]:
    info: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": int(context.started),
        "owned_by": "swapd",
        "state": states.get(spec.name, "unloaded"),
    }
    if spec.launch.context:
        info["context_length"] = spec.launch.context
    if spec.presentation.title:
        info["name"] = spec.presentation.title
    if spec.presentation.description:
        info["description"] = spec.presentation.description
    if spec.presentation.metadata:
        info["meta"] = dict(spec.presentation.metadata)
    return info


async def one_model(request: web.Request) -> web.Response:
    """Handle `/v1/models/<name>`: one entry of the list."""
    context = request.app[APP_CONTEXT]
    name = request.match_info["name"]
    spec = context.find(name, principal_of(request))
    return _json_response(_model_info(context, spec, name, context.states()))


async def running(request: web.Request) -> web.Response:
    """Handle `GET /running`: every running worker, in llama-swap's format with more fields.

    A key sees the workers of its models; commands and addresses are shown to admins alone.
    """
    context, principal = request.app[APP_CONTEXT], principal_of(request)
    workers = [_worker_info(context, snapshot) for snapshot in _visible(context, principal)]
    if principal is not None and not principal.key.admin:
        workers = [{**worker, "cmd": "", "proxy": ""} for worker in workers]
    return _json_response({"running": workers})


def _visible(context: AppContext, principal: Principal | None) -> list[WorkerSnapshot]:
    """Return the snapshots of the workers that a principal may see."""
    snapshots = context.supervisor.snapshots()
    if principal is None or principal.all_models:
        return snapshots
    models = context.names(principal).catalog.models
    return [snapshot for snapshot in snapshots if snapshot.status.model in models]


def _worker_info(context: AppContext, snapshot: WorkerSnapshot) -> dict[str, Any]:
    status = snapshot.status
    spec = context.supervisor.catalog.models.get(status.model)
    moment = context.supervisor.now()
    idle = None if status.idle_since is None else moment - status.idle_since
    expires_in = None if status.expires_at is None else max(0.0, status.expires_at - moment)
    return {
        "model": status.model,
        "state": status.state,
        "cmd": shlex.join(redact_argv(snapshot.argv)),
        "proxy": snapshot.base_url,
        "ttl": spec.serving.ttl if spec else 0,
        "name": spec.presentation.title if spec else "",
        "description": spec.presentation.description if spec else "",
        "pid": snapshot.pid,
        "started": snapshot.started,
        "busy": status.busy,
        "slots": status.slots,
        "waiting": context.supervisor.waiting(status.model),
        "idle_seconds": idle,
        "expires_in_seconds": expires_in,
        "last_progress_seconds": snapshot.since_progress,
        **context.metrics.faults(status.model),
        "bytes": status.bytes,
        "devices": [msgspec.to_builtins(device) for device in snapshot.devices],
        "context": spec.launch.context if spec else 0,
    }


async def load(request: web.Request) -> web.Response:
    """Handle `POST /load?model=`: respond when the model's worker is ready, or with the error."""
    context = request.app[APP_CONTEXT]
    name = await _model_parameter(request)
    if name is None:
        raise errors.BadRequestError("name the model to load: ?model=NAME, or 'model' in JSON")
    spec = context.find(name)
    try:
        await context.supervisor.load(spec.name)
    except RejectedError as error:
        return errors.rejection_response(error.rejection)
    return _json_response({"msg": "ok", "loaded": spec.name})


async def unload(request: web.Request) -> web.Response:
    """Handle `POST /unload?model=` for one model and `GET /unload` for all.

    Idle workers have exited when this responds; busy ones finish their requests first.
    """
    context = request.app[APP_CONTEXT]
    name = await _model_parameter(request)
    spec = context.find(name) if name is not None else None
    concerned = await context.supervisor.unload(spec.name if spec else None)
    return _json_response({"msg": "ok", "unloaded": concerned})


async def _model_parameter(request: web.Request) -> str | None:
    """Return the model that query or body name; None if neither does. Raises BadRequestError.

    Unknown parameters are rejected: if they were ignored, a misspelt one would mean all models.
    """
    fields: dict[str, msgspec.Raw] = {}
    body = await read_body(request, request.app[APP_CONTEXT].settings.max_body_bytes)
    if body.strip():
        try:
            fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise errors.BadRequestError(f"the body is not a JSON object: {error}") from error
        except RecursionError as error:
            raise errors.BadRequestError("the body is nested too deeply") from error
    for field in (*request.query, *fields):
        if field != "model":
            hint = did_you_mean(field[:40], ["model"])
            message = f"{request.path} has no parameter {field[:40]!r}{hint or '; it has model'}"
            raise errors.BadRequestError(message)
    names: list[str] = request.query.getall("model", [])
    names += [json_text(value) or "" for value in fields.values()]
    if not all(names):
        raise errors.BadRequestError("'model' must be a model's name", "model")
    if len(set(names)) > 1:
        raise errors.BadRequestError("'model' is given twice; name one model", "model")
    return names[0] if names else None


async def health(request: web.Request) -> web.Response:
    """Handle `GET /health`: 200 with the loaded models, or 503 during a shutdown."""
    context = request.app[APP_CONTEXT]
    if context.supervisor.closing:
        return errors.error_response(
            503, "swapd is shutting down", "unavailable_error", "shutting_down", retry_after=5
        )
    access = request.app.get(ACCESS_CONTROL)
    if access is not None and access.needs_keys and AUTHENTICATED not in request:
        # Clients without a key learn nothing beyond the health itself.
        return _json_response({"status": "ok"})
    visible = _visible(context, principal_of(request))
    loaded = [s.status.model for s in visible if s.status.state == "ready"]
    uptime = round(now() - context.since, 1)
    return _json_response({"status": "ok", "loaded": loaded, "uptime_seconds": uptime})


async def metrics(request: web.Request) -> web.Response:
    """Handle `GET /metrics`: all metrics in Prometheus' text format."""
    return web.Response(
        body=request.app[APP_CONTEXT].metrics.text(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )


async def openapi(request: web.Request) -> web.Response:  # noqa: ARG001
    """Handle `GET /openapi.json`. The document is built at each request, because it is rare."""
    from swapd.http.openapi import document

    return _json_response(document())


async def logs(request: web.Request) -> web.Response:
    """Handle `GET /logs`: the last lines of swapd's log, or of a model's workers (`?model=`)."""
    context = request.app[APP_CONTEXT]
    name = request.query.get("model", "")
    spec = context.find(name) if name else None
    lines = context.logs.last(spec.name if spec else "")
    return web.Response(text="".join(f"{line}\n" for line in lines))
