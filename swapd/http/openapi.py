"""`/openapi.json`: what can be asked of swapd over HTTP, and what it answers, in OpenAPI 3.1.

The bodies of requests that go to a worker are described as our own worker takes them; their schemas
are made from its code (`make schemas`) and lie beside this file. Another worker may take others.
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

WHY = {
    400: "The request is malformed, or the worker refuses what it says.",
    401: "An API key is needed.",
    403: "The key is not good for this; or the host or the origin is not one of ours.",
    404: "There is no such model, or the worker does not know the path.",
    408: "The request did not come in time.",
    413: "The body is over the limit.",
    415: "The body is packed in a way that is not known here.",
    417: "Something else than 100-continue is expected.",
    429: "Too many requests: of this key, for this model, or of this tenant.",
    431: "The request's head is too large.",
    500: "This request has ended its worker more than once.",
    501: "The worker can't do this.",
    502: "The worker failed before the first byte of its answer.",
    503: "Nothing can be served now: the message says why.",
}
EVERYWHERE = (400, 401, 403, 408, 413, 417, 429, 431)
"""What any request may be refused with."""
FOR_MODELS = (404, 415, *sorted({status for status, _, _ in HTTP_STATUS.values()} | {501} - {429}))
SUMMARIES = {
    "/v1/chat/completions": "A chat's next message, whole or as a stream of events",
    "/v1/completions": "A text's continuation, whole or as a stream of events",
    "/v1/embeddings": "Vectors for texts",
    "/v1/responses": "OpenAI's newer interface, for workers that know it",
    "/v1/messages": "Anthropic's interface, for workers that know it",
    "/v1/rerank": "Documents by how well they fit a query",
    "/v1/audio/speech": "Speech, for workers that know it",
    "/v1/images/generations": "Images, for workers that know it",
    "/completion": "llama-server's own way to continue a text",
    "/infill": "What belongs between a prefix and a suffix",
    "/rerank": "Documents by how well they fit a query",
    "/tokenize": "A text's tokens",
    "/detokenize": "The text of tokens",
    "/apply-template": "A chat as the model gets to read it",
}
STREAMED = frozenset({"/v1/chat/completions", "/v1/completions", "/completion", "/infill"})
MODEL = {
    "type": "string",
    "description": "The model's name, an alias, or NAME:ADAPTER.",
}
OF_SWAPD = {
    "model": MODEL,
    "user": {"description": "For whom it is, where `X-Tenant-Id` does not say so."},
    "keep_alive": {
        "description": "Seconds, or a duration such as 10m, after which the worker may go.",
        "anyOf": [
            {"type": ["number", "null"]},
            {"type": "string", "pattern": r"^-?[0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h)?$"},
        ],
    },
}
"""Fields that swapd itself reads."""


def document() -> Json:
    """The whole description."""
    worker = msgspec.json.decode(FILE.read_bytes())
    schemas: Json = {**worker["schemas"], **_own_schemas()}
    paths: Json = {}
    for path in BY_BODY:
        name = worker["bodies"].get(path, "")
        paths[path] = {"post": _by_body(path, name)}
        if name:
            schemas[name]["properties"].update(OF_SWAPD)
            required = schemas[name].get("required", [])
            schemas[name]["required"] = sorted({*required, "model"})
    paths |= _own_paths()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "swapd",
            "version": __version__,
            "description": "Many language models behind one endpoint. docs/http.md says more.",
        },
        "security": [{}, {"bearer": []}, {"header": []}, {"basic": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {str(status): _error(text) for status, text in WHY.items()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _by_body(path: str, schema: str) -> Json:
    plain = {"type": "object", "properties": OF_SWAPD, "required": ["model"]}
    body = {"$ref": f"#/components/schemas/{schema}"} if schema else plain
    answers: Json = {"application/json": {"schema": {}}}
    if path in STREAMED:
        answers["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "summary": SUMMARIES[path],
        "parameters": [_header("X-Tenant-Id", "For whom the request is.")],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": "The answer.", "content": answers}, **_refused(True)},
    }


def _own_paths() -> Json:
    name = _query("model", "A model's name.", required=True)
    perhaps = _query("model", "A model's name; without it, all.", required=False)
    listed = {"get": _own("The models that there are", "Models")}
    unload = _own("Let one model's worker go, or all", "Unloaded", [perhaps], for_models=True)
    anything = {"description": "What the worker answers, or a refusal of swapd's."}
    upstream: Json = {
        "summary": "Any path of a model's worker",
        "parameters": [_path("name", "A model's name."), _path("path", "The worker's path.")],
        "responses": {"default": anything},
    }
    return {
        "/v1/models": listed,
        "/models": listed,
        "/v1/models/{name}": {
            "get": _own("One model", "Model", [_path("name", "Its name.")], for_models=True)
        },
        "/running": {"get": _own("Every worker alive", "Running")},
        "/load": {"post": _own("Load a model", "Loaded", [name], for_models=True)},
        "/unload": {"post": unload, "get": unload},
        "/health": {"get": _own("Whether requests are taken", "Health", more=(503,))},
        "/metrics": {"get": _own("Figures for Prometheus", "")},
        "/logs": {"get": _own("Last lines of a log", "", [perhaps], for_models=True)},
        "/openapi.json": {"get": _own("This description", "Description")},
        "/upstream/{name}/{path}": {"get": upstream, "post": upstream},
    }


def _own(
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
    answer = {"description": "As asked.", "content": content}
    return {
        "summary": summary,
        "parameters": parameters or [],
        "responses": {"200": answer, **_refused(for_models, more)},
    }


def _refused(for_models: bool, more: tuple[int, ...] = ()) -> Json:
    statuses = sorted({*EVERYWHERE, *(FOR_MODELS if for_models else ()), *more})
    return {str(s): {"$ref": f"#/components/responses/{s}"} for s in statuses}


def _error(description: str) -> Json:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _query(name: str, description: str, required: bool) -> Json:
    return _parameter(name, "query", description, required)


def _path(name: str, description: str) -> Json:
    return _parameter(name, "path", description, True)


def _header(name: str, description: str) -> Json:
    return _parameter(name, "header", description, False)


def _parameter(name: str, where: str, description: str, required: bool) -> Json:
    schema = {"type": "string", "minLength": 1 if where == "path" else 0}
    return {
        "name": name,
        "in": where,
        "description": description,
        "required": required,
        "schema": schema,
    }


def _own_schemas() -> Json:
    text, count, number = {"type": "string"}, {"type": "integer"}, {"type": "number"}
    maybe_text, maybe_number = {"type": ["string", "null"]}, {"type": ["number", "null"]}
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
            ("idle_seconds", "expires_in_seconds", "last_progress_seconds"), maybe_number
        ),
    )
    return {
        "Error": _object(
            {"error": _object({"message": text, "type": text}, {"param": maybe_text, "code": {}})}
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
