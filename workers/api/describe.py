"""JSON Schemas of the worker's request bodies: `python -m workers.api.describe`.

They are generated from the structs that decode requests, with the bounds that `check` enforces.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from workers.api.llama_routes import Completion, Detokenize, Infill, Rerank, Tokenize
from workers.requests.bodies import ChatRequest, CompletionRequest, EmbeddingRequest
from workers.requests.sampling import AT_LEAST, AT_MOST

BODIES = {
    "/v1/chat/completions": ChatRequest,
    "/apply-template": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/completion": Completion,
    "/infill": Infill,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/rerank": Rerank,
    "/rerank": Rerank,
    "/tokenize": Tokenize,
    "/detokenize": Detokenize,
}
"""The struct of each path's body."""


def description() -> dict[str, Any]:
    """Return `bodies`, the schema's name for each path, and `schemas`, the schemas by name."""
    _, schemas = msgspec.json.schema_components(
        set(BODIES.values()), ref_template="#/components/schemas/{name}"
    )
    for schema in schemas.values():
        for name, member in schema.get("properties", {}).items():
            _add_bounds(name, member)
    names = {path: struct.__name__ for path, struct in BODIES.items()}
    return {"bodies": names, "schemas": dict(sorted(schemas.items()))}


def _add_bounds(name: str, member: dict[str, Any]) -> None:
    """Add the bounds of a number to its schema."""
    for part in member.get("anyOf", [member]):
        if part.get("type") in ("integer", "number"):
            if name in AT_LEAST:
                part["minimum"] = AT_LEAST[name]
            if name in AT_MOST:
                part["maximum"] = AT_MOST[name]


if __name__ == "__main__":
    text = msgspec.json.encode(description(), order="sorted")
    sys.stdout.buffer.write(msgspec.json.format(text, indent=1) + b"\n")
