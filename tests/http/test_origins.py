"""Hosts and origins: protection against DNS rebinding and cross-origin requests."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from swapd.domain.settings import AccessRules, ApiKey, ServerSettings, TlsPaths
from swapd.http.origins import OriginPolicy, host_name, risks, split_target
from tests.daemon import Swapd, config, error_of
from tests.fixtures import fake

KEY = ApiKey("k", b"0" * 32)


@pytest.fixture(scope="module")
def swapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swapd]:
    access = {
        "allowed_hosts": ["Swapd.example.org"],
        "cors": {"allowed_origins": ["https://chat.example.org", "http://localhost:*"]},
    }
    home = tmp_path_factory.mktemp("origins")
    with Swapd(home, config({"a": fake("a")}, **access)) as swapd:
        yield swapd


def ask(
    swapd: Swapd, method: str = "GET", path: str = "/running", **headers: str
) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.request(method, swapd.url + path, headers=named, trust_env=False)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.1.2.3:5847", "[::1]:1", "localhost."]
)
def test_names_of_the_loopback_interface_are_allowed(swapd: Swapd, host: str) -> None:
    assert ask(swapd, Host=host).status_code == 200


def test_a_configured_name_is_allowed(swapd: Swapd) -> None:
    assert ask(swapd, Host="swapd.Example.org:8443").status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "0.0.0.0:5847",
        "192.168.1.2",
        "[::2]",
        "x@localhost",
        "localhost/x",
        "localhost:80:80",
        "a.swapd.example.org",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/running", "/health", "/nowhere"])
def test_another_name_is_rejected(swapd: Swapd, host: str, path: str) -> None:
    answer = ask(swapd, path=path, Host=host)
    assert answer.status_code == 403
    assert error_of(answer)["code"] == "host_not_allowed"


def test_http_1_1_needs_a_host_and_1_0_does_not(swapd: Swapd) -> None:
    for version, status in (("1.1", b"400"), ("1.0", b"200")):
        with socket.create_connection(("127.0.0.1", swapd.port)) as sock:
            sock.sendall(f"GET /health HTTP/{version}\r\n\r\n".encode())
            assert sock.recv(4096).split()[1] == status


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "https://chat.example.org.evil.example"},
        {"Origin": "https://localhost:1"},
        {"Origin": "http://localhost:1.evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/unload"), ("POST", "/v1/completions")])
def test_requests_of_pages_of_another_origin_are_rejected(
    swapd: Swapd, headers: dict[str, str], method: str, path: str
) -> None:
    answer = ask(swapd, method, path, **headers)
    assert answer.status_code == 403
    assert error_of(answer)["code"] == "origin_not_allowed"
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["https://chat.example.org", "http://localhost:3000"])
def test_pages_of_a_configured_origin_may_read_responses(swapd: Swapd, origin: str) -> None:
    answer = ask(swapd, Origin=origin)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert answer.headers["Vary"] == "Origin"
    missing = ask(swapd, path="/nowhere", Origin=origin)
    assert missing.headers["Access-Control-Allow-Origin"] == origin


def test_swapds_own_pages_need_no_configuration(swapd: Swapd) -> None:
    answer = ask(swapd, Origin=swapd.url, Sec_Fetch_Site="same-origin")
    assert answer.status_code == 200
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert ask(swapd, Sec_Fetch_Site="none").status_code == 200


def test_a_preflight_is_answered_for_configured_origins_only(swapd: Swapd) -> None:
    headers = {
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "authorization, x-tenant-id",
        "Access_Control_Request_Private_Network": "true",
    }
    path = "/v1/chat/completions"
    answer = ask(swapd, "OPTIONS", path, Origin="https://chat.example.org", **headers)
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Origin"] == "https://chat.example.org"
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization, x-tenant-id"
    assert answer.headers["Access-Control-Allow-Private-Network"] == "true"
    refused = ask(swapd, "OPTIONS", path, Origin="https://evil.example", **headers)
    assert refused.status_code == 403
    assert "Access-Control-Allow-Methods" not in refused.headers
    without_origin = ask(swapd, "OPTIONS", path, **headers)
    assert without_origin.status_code == 405, "it is not a preflight"


@pytest.mark.parametrize(
    ("host", "by_default", "with_keys", "with_a_list"),
    [
        ("10.0.0.7:5847", True, True, True),
        ("[fd00::1]", True, True, True),
        ("localhost", True, True, True),
        ("llm", True, True, False),
        ("llm.local", True, True, False),
        ("llm.example.org", False, True, True),
        ("evil.example", False, True, False),
        ("", False, False, False),
        ("a b", False, False, False),
    ],
)
def test_names_on_other_interfaces_are_allowed_by_rule(
    host: str, by_default: bool, with_keys: bool, with_a_list: bool
) -> None:
    for access, expected in (
        (AccessRules(), by_default),
        (AccessRules((KEY,)), with_keys),
        (AccessRules((KEY,), ("*.example.org",)), with_a_list),
    ):
        origins = OriginPolicy(False, access)
        assert origins.allows_host(host) is expected, access
        assert origins.allows_host(host) is expected, "from the cache"


def test_the_name_in_a_host_header_is_extracted() -> None:
    assert host_name("Example.ORG.:80") == "example.org"
    assert host_name("[::1]:80") == "::1"
    for malformed in ("a:b", "a:1:2", "[::1", "a b", "a/b", "a@b", "a#", ":"):
        assert host_name(malformed) == ""


def test_all_origins_may_read_if_configured() -> None:
    origins = OriginPolicy(True, AccessRules(allowed_origins=("*",)))
    assert origins.allows("https://any.example")
    assert origins.foreign_origin({"Origin": "null", "Host": "localhost"}) == ""


def test_the_risks_of_an_address_are_reported() -> None:
    assert risks(ServerSettings()) == []
    assert risks(ServerSettings(host="::1")) == []
    bare = " ".join(risks(ServerSettings(host="0.0.0.0")))
    assert "no API key is set" in bare
    assert "without TLS" in bare
    keyed = " ".join(risks(ServerSettings(host="0.0.0.0", access=AccessRules((KEY,)))))
    assert "no API key" not in keyed
    assert "keys, prompts and answers can be read" in keyed
    assert (
        risks(ServerSettings(host="0.0.0.0", access=AccessRules((KEY,)), tls=TlsPaths("c", "k")))
        == []
    )


def _status(swapd: Swapd, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", swapd.port), timeout=20) as sock:
        sock.sendall(sent)
        return sock.recv(65536)


def test_a_target_may_name_the_server_by_an_allowed_name(swapd: Swapd) -> None:
    body = b'{"model": "a", "messages": []}'
    end = b"Host: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    for authority, status in ((b"localhost:7", b"200"), (b"evil.example", b"403")):
        for path in (b"/v1/chat/completions?x=1", b"/upstream/a/v1/chat/completions"):
            sent = b"POST http://" + authority + path + b" HTTP/1.1\r\n" + end
            assert _status(swapd, sent).split()[1] == status, (authority, path)
    bare = b"GET http://evil.example?x HTTP/1.0\r\n\r\n"
    assert b"'evil.example' is not a name of this server" in _status(swapd, bare)


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("/a/b?c=http://d", ("", "/a/b?c=http://d")),
        ("*", ("", "*")),
        ("http://h:1/a?b", ("h:1", "/a?b")),
        ("http://h?b", ("h", "/?b")),
        ("http://h", ("h", "/")),
    ],
)
def test_a_target_is_split(target: str, parts: tuple[str, str]) -> None:
    assert split_target(target) == parts


def test_an_origin_that_is_not_text_is_rejected_like_others(swapd: Swapd) -> None:
    sent = b"GET /running HTTP/1.1\r\nHost: localhost\r\nOrigin: http://caf\xe9\r\n\r\n"
    assert _status(swapd, sent).startswith(b"HTTP/1.1 403 ")
