"""Fuzzing: every request gets a well-formed response or none, never a 500 and never a traceback."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from swapd.config.access import digest_of
from swapd.domain.settings import AccessRules, ApiKey
from swapd.http import proxy_routes
from swapd.http.api_keys import KeyStore, presented_keys
from swapd.http.origins import OriginPolicy, host_name
from swapd.proxy.sse import EventIds
from tests.daemon import Swapd, chat, config
from tests.fixtures import demo

LIVE = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
PURE = settings(max_examples=80, deadline=None, derandomize=True, database=None)
KEY_STORE = KeyStore([ApiKey("k", digest_of(b"key"))])

HEADER_TEXT = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=60)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = (
    *("messages", "prompt", "input", "content", "tokens", "stream", "max_tokens", "stop", "n"),
    *("temperature", "top_k", "seed", "tools", "tool_choice", "response_format", "json_schema"),
    *("logit_bias", "samplers", "lora", "user", "keep_alive", "stream_options", "logprobs"),
    *("grammar", "suffix", "query", "documents", "encoding_format", "cache_prompt", "echo"),
)
BODY = st.one_of(
    st.binary(max_size=200),
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5).map(
        lambda more: msgspec.json.encode({**chat("bard", max_tokens=2), **more})
    ),
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5).map(
        lambda more: msgspec.json.encode({"model": "bard", "max_tokens": 2, **more})
    ),
    JSON.map(lambda value: msgspec.json.encode({"model": value})),
)
VALID = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Tenant-Id: me\r\n"
    b"Content-Type: application/json\r\nContent-Length: 48\r\n\r\n"
    b'{"model": "bard", "prompt": "x", "max_tokens":1}'
)


@pytest.fixture(scope="module")
def swapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swapd]:
    home = tmp_path_factory.mktemp("fuzz")
    models = {"bard": demo("bard", "--parallel 4")}
    with Swapd(
        home, config(models, max_body="1 MiB", client_timeout=1, warm_standby=False)
    ) as swapd:
        assert swapd.ask("bard").status_code == 200
        pid = swapd.worker("bard")["pid"]
        yield swapd
        assert swapd.worker("bard")["pid"] == pid, "a request ended the worker"
        assert "Traceback" not in swapd.log()
        assert "Traceback" not in (home / "output").read_text()


def is_complete(response: bytes) -> bool:
    """Return True if a response has arrived up to the end that its head announces."""
    head, end, body = response.lower().partition(b"\r\n\r\n")
    if not end:
        return False
    if b"transfer-encoding: chunked" in head:
        return body.endswith(b"0\r\n\r\n")
    length = head.partition(b"content-length:")[2].split()
    return bool(length) and len(body) >= int(length[0])


def status_of(swapd: Swapd, sent: bytes) -> int:
    """Return the response's status, or 0 without a response. Errors must be well-formed."""
    with socket.create_connection(("127.0.0.1", swapd.port), timeout=60) as sock:
        data = b""
        with contextlib.suppress(ConnectionError):
            sock.sendall(sent)
            # A damaged `Connection: close` keeps the connection open for longer than the timeout.
            while not is_complete(data) and (chunk := sock.recv(65536)):
                data += chunk
    if not data:
        return 0
    head, _, body = data.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if status >= 400 and b"hunked" not in head and b"HEAD" not in sent[:5]:
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        assert msgspec.json.decode(body[:length]).keys() >= {"error"}
    return status


@given(
    path=st.sampled_from(proxy_routes.BY_BODY),
    body=BODY,
    headers=st.dictionaries(
        st.sampled_from(
            ["X-Tenant-Id", "Authorization", "x-api-key", "Accept", "Content-Type", "Cookie"]
        ),
        HEADER_TEXT,
        max_size=3,
    ),
)
@LIVE
def test_any_body_is_handled(swapd: Swapd, path: str, body: bytes, headers: dict[str, str]) -> None:
    lines = [f"{name}: {value}".encode("latin-1") for name, value in headers.items()]
    start = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    length = f"Content-Length: {len(body)}"
    sent = b"\r\n".join([(start + length).encode(), *lines, b"", b""]) + body
    status = status_of(swapd, sent)
    assert 0 < status < 500, (status, sent)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a request of which parts are missing, doubled or replaced."""
    text = VALID.replace(b"localhost\r\n", b"localhost\r\nConnection: close\r\n")
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(start + 12, len(text))))
        new = draw(st.sampled_from([b"", b"\r\n", b"\0", b" ", b":", b"\xff", b"%"]))
        text = text[:start] + (new or draw(st.binary(max_size=6))) + text[end:]
    return text


@given(sent=damaged())
@LIVE
def test_damaged_requests_are_handled(swapd: Swapd, sent: bytes) -> None:
    assert status_of(swapd, sent) < 500, sent


SEGMENT = st.sampled_from(
    ["bard", "..", "%2e%2e", "%00", "%", "%zz", "//", "health", "slots", ":", "@", "é", "~", " "]
)


@given(
    method=st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"]),
    start=st.sampled_from(["/upstream/", "/v1/models/", "/", "", "*", "http://evil/upstream/"]),
    rest=st.lists(SEGMENT, max_size=4).map("/".join),
    query=st.sampled_from(["", "?model=bard", "?model=%ff", "?model", "?=&&", "#x"]),
)
@LIVE
def test_any_path_is_handled(swapd: Swapd, method: str, start: str, rest: str, query: str) -> None:
    if "unload" in rest or (method == "POST" and "slots" in rest):
        return
    line = f"{method} {start}{rest}{query} HTTP/1.1\r\n".encode()
    sent = line + b"Host: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    # 501 is a worker's status for an optional path that it does not have.
    assert status_of(swapd, sent) in {*range(500), 501}, sent


@given(
    st.dictionaries(
        st.sampled_from(["Authorization", "x-api-key", "Host", "Origin", "Sec-Fetch-Site"]),
        st.text(max_size=80) | HEADER_TEXT.map(lambda text: f"Basic {text}"),
    )
)
@PURE
def test_any_credentials_and_origins_are_handled(headers: dict[str, str]) -> None:
    multidict = CIMultiDict(headers)
    presented = [key for _, key in presented_keys(multidict)]
    assert KEY_STORE.authenticate(multidict) is None or b"key" in presented
    for loopback in (True, False):
        origins = OriginPolicy(loopback, AccessRules(allowed_origins=("https://*.example.org",)))
        origins.allows_host(headers.get("Host", ""))
        origins.foreign_origin(multidict)
    assert "/" not in host_name(headers.get("Host", ""))


@given(JSON)
@PURE
def test_any_keep_alive_is_handled(value: object) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(proxy_routes.parse_keep_alive(value), float)


EVENT = st.one_of(
    st.just(b"id: a b\ndata: {}\n\n"),
    st.just(b"data: [DONE]\n\n"),
    st.just(b"data: id: x\n\n"),
    st.sampled_from([b"\n", b"\n\n", b"id:", b"id: ", b"data:", b"\r\n", b": c\n\n"]),
    st.binary(max_size=8),
)


def _without_ids(stream: bytes) -> list[bytes]:
    """Return its lines without ids and without blank lines, whose number means nothing."""
    return [line for line in stream.split(b"\n") if line and not line.startswith(b"id:")]


@given(st.lists(EVENT, max_size=8).map(b"".join), st.lists(st.integers(0, 80), max_size=8))
@PURE
def test_ids_are_removed_from_streams_in_any_chunks(stream: bytes, cuts: list[int]) -> None:
    """Remove nothing but id lines, wherever the chunks of the stream end."""
    places = sorted({0, *(min(cut, len(stream)) for cut in cuts), len(stream)})
    ids, passed = EventIds(), b""
    for start, end in itertools.pairwise(places):
        passed += ids.take(stream[start:end])
    passed += ids.rest()
    assert _without_ids(passed) == _without_ids(stream)
    assert msgspec.json.decode(ids.resumption(b"{}")).keys() == {"request", "resume"}
