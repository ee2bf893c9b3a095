"""`/openapi.json` describes exactly the routes and responses of the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CheckFunction
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from swapd.http import app, openapi
from tests.daemon import Swapd, config
from tests.fixtures import demo
from workers.api.describe import description

CHECKS: list[CheckFunction] = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
OPERATIONS = [
    (method.upper(), path)
    for path, methods in openapi.document()["paths"].items()
    for method in methods
]
SLOW_ONES = {"/load", "/unload"}
"""Paths that start or end a process at each request."""


@pytest.fixture(scope="module")
def swapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swapd]:
    home = tmp_path_factory.mktemp("openapi")
    models = {"bard": demo("bard", "--parallel 4 --predict 4")}
    with Swapd(home, config(models, max_body="1 MiB", warm_standby=False)) as swapd:
        assert swapd.ask("bard").status_code == 200
        yield swapd
        assert "Traceback" not in swapd.log()
        assert "Traceback" not in (home / "output").read_text()


@pytest.fixture(scope="module")
def described(swapd: Swapd) -> Any:
    return schemathesis.openapi.from_dict(swapd.http.get("/openapi.json").json())


def test_the_document_describes_every_route_and_no_other(swapd: Swapd) -> None:
    served = app.application(_context_stub(), None)
    routes = {
        (route.method, route.resource.canonical)
        for route in served.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    routes = {r for r in routes if not r[1].startswith("/upstream/")}
    described = {(method, path) for method, path in OPERATIONS if not path.startswith("/upstream/")}
    assert described == routes


def _context_stub() -> Any:
    """Return the part of a context that `application` reads: the limit of a body."""

    class Settings:
        max_body_bytes = 1

    class Stub:
        settings = Settings()

    return Stub()


def test_the_schemas_of_the_worker_are_up_to_date() -> None:
    assert msgspec.json.decode(openapi.FILE.read_bytes()) == description(), "make schemas"


def test_references_can_be_resolved() -> None:
    document = openapi.document()

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                at: Any = document
                for step in value["$ref"].removeprefix("#/").split("/"):
                    at = at[step]
            for inner in value.values():
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)

    look(document)


def _can_be_invalid(method: str, path: str) -> bool:
    """Return True if the document describes a body or a query for this operation."""
    operation = openapi.document()["paths"][path][method.lower()]
    parameters = operation.get("parameters", ())
    return "requestBody" in operation or any(p.get("in") == "query" for p in parameters)


CASES = [
    pytest.param(method, path, sane, id=f"{method} {path} {'as' if sane else 'not as'} described")
    for method, path in OPERATIONS
    for sane in (True, False)
    if sane or _can_be_invalid(method, path)
]


@pytest.mark.parametrize(("method", "path", "sane"), CASES)
def test_responses_are_as_described(
    swapd: Swapd, described: Any, method: str, path: str, sane: bool, request: pytest.FixtureRequest
) -> None:
    """Send requests that follow the document and others that violate it.

    No response is a 500 or has a status, type or schema that is not described.
    """
    long = request.config.getoption("--long")
    examples = (3 if path in SLOW_ONES else 10) * (25 if long else 1)
    mode = schemathesis.GenerationMode.POSITIVE if sane else schemathesis.GenerationMode.NEGATIVE
    operation = described[path][method]
    assert sane or operation.body or operation.query

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=not long,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Any) -> None:
        _make_valid(case)
        response = case.call(base_url=swapd.url, timeout=60)
        case.validate_response(response, checks=CHECKS)

    run()


def _make_valid(case: Any) -> None:
    """Let half of the generated requests name an existing model, and keep responses short."""
    body = case.body
    if isinstance(body, dict) and len(str(body)) % 2:
        body["model"] = "bard"
        if case.path == "/v1/chat/completions" and "messages" in body:
            body["messages"] = [{"role": "user", "content": "Who?"}]
    if isinstance(body, dict) and isinstance(body.get("n"), int):
        body["n"] = min(body["n"], 3)
    if case.path_parameters and "name" in case.path_parameters and len(str(case.headers)) % 2:
        case.path_parameters["name"] = "bard"


def test_the_document_is_served_as_json(swapd: Swapd) -> None:
    answer: httpx.Response = swapd.http.get("/openapi.json")
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.json() == msgspec.json.decode(msgspec.json.encode(openapi.document()))
