"""Arbitrary input: one sentence for an error, and never a failure of the worker."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workers.process import WorkerProcess
from tests.workers.random_gguf import CHAT_TEMPLATE, write_random_gguf
from workers.api.llama_routes import Completion, Detokenize, Infill, Rerank, Tokenize
from workers.api.slot_routes import LoadAdapter, UnloadAdapter
from workers.chat.answer_parts import ArgumentsPart, ToolCall
from workers.chat.output_parser import Dialect, OutputParser
from workers.engine.kv_store import MANIFEST, DamagedError, KvFiles
from workers.errors import ApiError
from workers.grammar import gbnf
from workers.grammar.json_schema import SchemaError, schema_grammar
from workers.protocol import NO_TOKENS
from workers.requests.bodies import ChatRequest, CompletionRequest, EmbeddingRequest
from workers.requests.resume import Resumption, parse_call
from workers.spare import parse_arguments

ROUTES: dict[str, type[msgspec.Struct]] = {
    "/v1/chat/completions": ChatRequest,
    "/apply-template": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/completion": Completion,
    "/infill": Infill,
    "/v1/rerank": Rerank,
    "/tokenize": Tokenize,
    "/detokenize": Detokenize,
    "/v1/load_lora_adapter": LoadAdapter,
    "/v1/unload_lora_adapter": UnloadAdapter,
    "/resume/v1/completions": Resumption,
}
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["a", "user", "", "\x00", "\ud800", "required", "json_schema", "object", 'root ::= "a"*', "x:y"]
)
LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
WORDS = (
    "<tool_call>", "</tool_call>", "<function=", "<parameter=", "</parameter>", "</function>", ">",
    "{", "}", "[", "]", ":", ",", "name", "arguments", "parameters", "[TOOL_CALLS]", "[ARGS]",
    "[CALL_ID]", "<|python_tag|>", "<think>", "</think>", '"', "\\", ";", "1", "\n", "x", "",
    '{"name": "f", "arguments": {',
)  # fmt: skip
"""Texts that answers are composed of."""
FITTING: dict[str, st.SearchStrategy[Any]] = {
    "messages": st.lists(
        st.fixed_dictionaries(
            {"role": TEXTS, "content": TEXTS}, optional={"tool_calls": VALUES}
        ),
        min_size=1,
        max_size=2,
    ),
    "prompt": TEXTS | st.lists(st.integers(0, 300), max_size=3),
    "input": TEXTS | st.lists(TEXTS, max_size=2),
    "response_format": st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "json_object", "json_schema"])},
        optional={"schema": VALUES, "json_schema": VALUES},
    ),
    "tools": st.lists(
        st.fixed_dictionaries(
            {"function": st.fixed_dictionaries({"name": TEXTS}, optional={"parameters": VALUES})}
        ),
        max_size=2,
    ),
    "resume": st.lists(TEXTS | st.just(NO_TOKENS), max_size=3),
    "stream": st.booleans(),
}  # fmt: skip


POOL: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 40, 0.0, 0.2, 0.5, 1.0, 1.5, 5.0, "", "a", "x:y", "none",
    "auto", "float", "base64", [], ["a"], ["top_k", "dry"], [1], [[1], [2]], {}, {"1": 1.5},
    [["a", True]], [{"id": 0, "scale": 0.5}], {"type": "object"}, {"include_usage": True},
    [{"text": "a"}],
]  # fmt: skip
"""Values of any type."""


def fitting(kind: type[msgspec.Struct]) -> dict[str, st.SearchStrategy[Any]]:
    """Return a strategy for each member, with values of its type."""
    found = {}
    for field in msgspec.structs.fields(kind):
        fits = []
        for value in POOL:
            with suppress(msgspec.ValidationError):
                msgspec.convert(value, field.type)
                fits.append(value)
        found[field.encode_name] = FITTING.get(field.encode_name, st.sampled_from(fits or [None]))
    return found


MEMBERS = {path: fitting(kind) for path, kind in ROUTES.items()}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw a route, and a body with some of its members, nearly all of them valid."""
    path = draw(st.sampled_from(sorted(ROUTES)))
    members = MEMBERS[path]
    body = {}
    names = draw(st.lists(st.sampled_from(sorted(members)), unique=True, max_size=8))
    for name in {*names, *({"messages", "prompt", "input"} & members.keys())}:
        wrong = draw(st.integers(0, 15)) == 0
        body[name] = draw(VALUES if wrong else members[name])
    return path, json.dumps(body).encode("utf-8", "surrogatepass")


SAME: dict[str, Any] = {
    "deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)
}  # fmt: skip
"""Settings with the same requests in every run."""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Start a worker with short answers."""
    folder = tmp_path_factory.mktemp("fuzz")
    template = "{% if tools %}<tool_call>{% endif %}" + CHAT_TEMPLATE
    path = write_random_gguf(folder / "m.gguf", context=256, chat_template=template)
    flags = ("--ctx-size", "256", "--predict", "3", "--adapters", str(folder))
    process = WorkerProcess(path, *flags, "--slot-save-path", str(folder / "kv"))
    yield process
    process.kill()


@pytest.fixture(scope="module")
def connection(worker: WorkerProcess) -> Iterator[http.client.HTTPConnection]:
    """Open a connection that stays open."""
    connection = worker.connect()
    yield connection
    connection.close()


def answered(connection: http.client.HTTPConnection, path: str, body: bytes) -> None:
    """Check that the request succeeds, or is rejected with one sentence."""
    connection.request("POST", path, body)
    response = connection.getresponse()
    data = response.read()
    assert response.status in {200, 400, 403, 404, 409, 413}, (path, body, data)
    if response.status != 200:
        error = json.loads(data)["error"]
        assert error["message"], (path, body)
        assert "\n" not in error["message"], (path, body, data)


@given(requests())
@settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
def test_any_members(connection: http.client.HTTPConnection, request_: tuple[str, bytes]) -> None:
    answered(connection, *request_)


@given(st.sampled_from(sorted([*ROUTES, "/slots/0?action=save"])), st.binary(max_size=30))
@settings(max_examples=60, **SAME)
def test_any_bytes(connection: http.client.HTTPConnection, path: str, body: bytes) -> None:
    answered(connection, path, body)


@given(VALUES)
def test_any_json_schema(schema: Any) -> None:
    for lenient in (False, True):
        try:
            gbnf.check(schema_grammar(schema, lenient=lenient))
        except (SchemaError, gbnf.GrammarError) as error:
            assert str(error)


@given(
    st.lists(st.sampled_from(WORDS) | TEXTS, max_size=20),
    st.sampled_from([None, *Dialect]),
)
def test_any_answer(words: list[str], dialect: Dialect | None) -> None:
    parser = OutputParser(dialect, {"f": {"type": "object"}, "x": {}})
    pieces = [piece for word in words for piece in parser.feed(word)] + parser.finish()
    called = False
    for piece in pieces:
        assert called or not isinstance(piece, ArgumentsPart), "arguments belong to a call"
        called = called or isinstance(piece, ToolCall)


@given(st.text(max_size=20) | st.text("0123456789abcdef.;=,-", max_size=60))
def test_any_id_line(line: str) -> None:
    body = json.dumps({"request": {}, "resume": [line]}).encode("utf-8", "surrogatepass")
    try:
        call = parse_call("/resume/x", {}, body, "")
    except ApiError as error:
        assert error.status == 400
    else:
        assert call.sent is not None


@given(st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_line_for_a_standby(line: bytes) -> None:
    try:
        assert all(isinstance(one, str) for one in parse_arguments(line))
    except ValueError as error:
        assert "standby worker" in str(error)


@given(
    st.binary(max_size=60)
    | st.fixed_dictionaries(
        {},
        optional={
            "identity": st.just("me") | TEXTS,
            "tokens": st.sampled_from(["", "AAAAAA==", "AAAA", "!", "AQAAAAIAAAA="]),
            "adapters": VALUES | st.just([]),
            "size": LEAVES,
            "crc32": LEAVES,
        },
    ).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    st.sampled_from(["file", "folder", "none"]),
)
@settings(suppress_health_check=list(HealthCheck))
def test_any_manifest(tmp_path_factory: pytest.TempPathFactory, manifest: bytes, data: str) -> None:
    root = tmp_path_factory.mktemp("kv")
    files = KvFiles(root, "me", 10_000)
    path = files.place([1, 2], ())
    path.parent.mkdir()
    path.with_name(path.name + MANIFEST).write_bytes(manifest)
    if data == "file":
        path.write_bytes(b"data")
    elif data == "folder":
        path.mkdir()
    for saved in files.index():
        try:
            files.check(saved)
        except DamagedError as damage:
            files.discard(saved.path, str(damage))
    assert files.make_room(100)
    files.disable("the test says so")
    assert not files.usable
