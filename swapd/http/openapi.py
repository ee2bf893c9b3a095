"""The OpenAPI 3.1 document of swapd's HTTP interface, served as `/openapi.json`.

Request bodies that are forwarded to a worker are described as the built-in worker accepts them.
Their schemas are generated from its code (`make schemas`) and stored beside this file. External
workers may accept others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from swapd import __version__
from swapd.domain.commands import HTTP_STATUS
from swapd.http.proxy_routes import BY_BODY

Json: TypeAlias = dict[str, Any]
FILE = Path(__file__).with_name("worker_requests.json")

DESCRIPTIONS = {
    400: "The request is malformed, or the worker rejected it.",
    401: "An API key is required.",
    403: "The key does not permit this request, or the host or the origin is not allowed.",
    404: "The model does not exist, or the worker does not support the path.",
    408: "The request did not arrive in time.",
    413: "The body is over the limit.",
    415: "The body's Content-Encoding is not supported.",
    417: "The only supported expectation is 100-continue.",
    429: "Too many requests with this key, for this model, or of this tenant.",
    431: "The request's head is too large.",
    500: "Workers crashed repeatedly while serving this request.",
    501: "The worker does not support this.",
    502: "The worker failed before the first byte of its response.",
    503: "The request can't be served now; the message has the reason.",
}
EVERYWHERE = (400, 401, 403, 408, 413, 417, 429, 431)
"""Error statuses of every endpoint."""
FOR_MODELS = (404, 415, *sorted({status for status, _, _ in HTTP_STATUS.values()} | {501} - {429}))
"""Further error statuses of endpoints that need a model."""
SUMMARIES = {
    "/v1/chat/completions": "Generate a chat's next message, whole or as a stream of events",
    "/v1/completions": "Continue a text, whole or as a stream of events",
    "/v1/embeddings": "Compute embedding vectors of texts",
    "/v1/responses": "OpenAI's Responses API, for workers that support it",
    "/v1/messages": "Anthropic's Messages API, for workers that support it",
    "/v1/rerank": "Rank documents by relevance to a query",
    "/v1/audio/speech": "Generate speech, for workers that support it",
    "/v1/images/generations": "Generate images, for workers that support it",
    "/completion": "Continue a text, in llama-server's format",
    "/infill": "Fill in the text between a prefix and a suffix",
    "/rerank": "Rank documents by relevance to a query",
    "/tokenize": "Convert a text to tokens",
    "/detokenize": "Convert tokens to a text",
    "/apply-template": "Render a chat with the model's template",
}
STREAMED = frozenset({"/v1/chat/completions", "/v1/completions", "/completion", "/infill"})
MODEL = {
    "type": "string",
    "description": "The model's name, an alias, or NAME:ADAPTER.",
}
SWAPD_FIELDS = {
    "model": MODEL,
    "user": {"description": "Tenant of the request, unless `X-Tenant-Id` is given."},
    "keep_alive": {
        "description": "Idle time until the worker is stopped: seconds, or a duration like 10m.",
        "anyOf": [
            {"type": ["number", "null"]},
            {"type": "string", "pattern": r"^-?[0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h)?$"},
        ],
    },
}
"""Body fields that swapd itself reads."""


def document() -> Json:
    """Return the OpenAPI document."""
    worker = msgspec.json.decode(FILE.read_bytes())
    schemas: Json = {**worker["schemas"], **_swapd_schemas()}
    paths: Json = {}
    for path in BY_BODY:
        name = worker["bodies"].get(path, "")
        paths[path] = {"post": _by_body(path, name)}
        if name:
            schemas[name]["properties"].update(SWAPD_FIELDS)
            required = schemas[name].get("required", [])
            schemas[name]["required"] = sorted({*required, "model"})
    paths |= _swapd_paths()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "swapd",
            "version": __version__,
            "description": "Many language models behind one endpoint. Details: docs/http.md.",
        },
        "security": [{}, {"bearer": []}, {"header": []}, {"basic": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {
                str(status): _error_response(text) for status, text in DESCRIPTIONS.items()
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _by_body(path: str, schema: str) -> Json:
    swapd_only = {"type": "object", "properties": SWAPD_FIELDS, "required": ["model"]}
    body = {"$ref": f"#/components/schemas/{schema}"} if schema else swapd_only
    content: Json = {"application/json": {"schema": {}}}
    if path in STREAMED:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "summary": SUMMARIES[path],
        "parameters": [_header("X-Tenant-Id", "Tenant of the request.")],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {"description": "The worker's response.", "content": content},
            **_errors(True),
        },
    }


def _swapd_paths() -> Json:
    name = _query("model", "A model's name.", required=True)
    optional = _query("model", "A model's name; without it, all models.", required=False)
    listed = {"get": _endpoint("List the models", "Models")}
    unload = _endpoint("Unload one model or all", "Unloaded", [optional], for_models=True)
    anything = {"description": "The worker's response, or an error of swapd."}
    upstream: Json = {
        "summary": "Forward any path to a model's worker",
        "parameters": [_path("name", "A model's name."), _path("path", "The worker's path.")],
        "responses": {"default": anything},
    }
    return {
        "/v1/models": listed,
        "/models": listed,
        "/v1/models/{name}": {
            "get": _endpoint(
                "Show one model", "Model", [_path("name", "Its name.")], for_models=True
            )
        },
        "/running": {"get": _endpoint("List the running workers", "Running")},
        "/load": {"post": _endpoint("Load a model", "Loaded", [name], for_models=True)},
        "/unload": {"post": unload, "get": unload},
        "/health": {
            "get": _endpoint("Report whether requests are accepted", "Health", more=(503,))
        },
        "/metrics": {"get": _endpoint("Export metrics for Prometheus", "")},
        "/logs": {
            "get": _endpoint("Show the last lines of a log", "", [optional], for_models=True)
        },
        "/openapi.json": {"get": _endpoint("Show this document", "Description")},
        "/upstream/{name}/{path}": {"get": upstream, "post": upstream},
    }


def _endpoint(
    summary: str,
    schema: str,
    parameters: list[Json] | None = None,
    *,
    for_models: bool = False,
    more: tuple[int, ...] = (),
) -> Json:
    if schema:
        content: Json = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    else:
        content = {"text/plain": {"schema": {"type": "string"}}}
    response = {"description": "Success.", "content": content}
    return {
        "summary": summary,
        "parameters": parameters or [],
        "responses": {"200": response, **_errors(for_models, more)},
    }


def _errors(for_models: bool, more: tuple[int, ...] = ()) -> Json:
    statuses = sorted({*EVERYWHERE, *(FOR_MODELS if for_models else ()), *more})
    return {str(s): {"$ref": f"#/components/responses/{s}"} for s in statuses}


def _error_response(description: str) -> Json:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _query(name: str, description: str, required: bool) -> Json:
    return _parameter(name, "query", description, required)


def _path(name: str, description: str) -> Json:
    return _parameter(name, "path", description, True)


def _header(name: str, description: str) -> Json:
    return _parameter(name, "header", description, False)


def _parameter(name: str, location: str, description: str, required: bool) -> Json:
    schema = {"type": "string", "minLength": 1 if location == "path" else 0}
    return {
        "name": name,
        "in": location,
        "description": description,
        "required": required,
        "schema": schema,
    }


def _swapd_schemas() -> Json:
    text, count, number = {"type": "string"}, {"type": "integer"}, {"type": "number"}
    optional_text, optional_number = {"type": ["string", "null"]}, {"type": ["number", "null"]}
    model = _object(
        {"id": text, "object": {"const": "model"}, "created": count, "owned_by": text},
        {"state": text, "context_length": count, "name": text, "description": text, "meta": {}},
    )
    device = _object({"name": text} | dict.fromkeys(("total", "free", "held"), count), {})
    worker = _object(
        dict.fromkeys(("model", "state", "cmd", "proxy", "name", "description"), text)
        | dict.fromkeys(("busy", "slots", "waiting", "bytes", "context"), count),
        {"pid": {}, "started": {}, "ttl": number, "devices": {"type": "array", "items": device}}
        | dict.fromkeys(
            ("idle_seconds", "expires_in_seconds", "last_progress_seconds"), optional_number
        ),
    )
    return {
        "Error": _object(
            {
                "error": _object(
                    {"message": text, "type": text}, {"param": optional_text, "code": {}}
                )
            }
        ),
        "Model": model,
        "Models": _object({"object": {"const": "list"}, "data": _list_of("Model")}),
        "Worker": worker,
        "Running": _object({"running": _list_of("Worker")}),
        "Loaded": _object({"msg": text, "loaded": text}),
        "Unloaded": _object({"msg": text, "unloaded": {"type": "array", "items": text}}),
        "Health": _object(
            {"status": text},
            {"loaded": {"type": "array", "items": text}, "uptime_seconds": number},
        ),
        "Description": _object({"openapi": text, "paths": {"type": "object"}}),
    }


def _object(required: Json, more: Json | None = None) -> Json:
    return {
        "type": "object",
        "properties": {**required, **(more or {})},
        "required": sorted(required),
    }


def _list_of(schema: str) -> Json:
    return {"type": "array", "items": {"$ref": f"#/components/schemas/{schema}"}}
