"""API keys: authentication, scopes, rate limits, and secrecy of the keys."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest
from multidict import CIMultiDict

from swapd.config.access import digest_of, hash_of
from swapd.domain.settings import ApiKey
from swapd.http.api_keys import KeyStore, RateLimiter
from swapd.system.redact import redact_argv, redact_text
from tests.daemon import Swapd, alive, chat, config, error_of, eventually
from tests.fixtures import fake

ALL, ONE, ADMIN, SLOW = (f"sk-{name}-5ecret" for name in ("all", "one", "admin", "slow"))
KEYS = {
    "all": {"hash": hash_of(ALL)},
    "one": {"hash": hash_of(ONE), "models": ["alp*"]},
    "admin": {"hash": hash_of(ADMIN), "models": [], "admin": True},
    "slow": {"hash": hash_of(SLOW), "rate": 2},
}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def swapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swapd]:
    home = tmp_path_factory.mktemp("keys")
    models = {
        "alpha": fake("alpha", "--api-key of-a-worker-5ecret"),
        "beta": fake("beta", aliases=["also"]),
    }
    with Swapd(home, config(models, keys=KEYS, apiKeys=["sk-plain-5ecret"])) as swapd:
        swapd.http.headers["x-api-key"] = ADMIN
        yield swapd


def get(swapd: Swapd, path: str, **headers: str) -> httpx.Response:
    return httpx.get(swapd.url + path, headers=headers, trust_env=False)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def basic(key: str, user: str = "me") -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{key}'.encode()).decode()}"}


@pytest.mark.parametrize(
    "headers",
    [
        bearer(ALL),
        {"Authorization": f"bearer   {ALL}"},
        {"x-api-key": ALL},
        basic(ALL),
        basic(ALL, ""),
        {"Authorization": "Bearer of-the-worker", "x-api-key": ALL},
        {**bearer(ALL), "x-api-key": "of-the-worker"},
        bearer("sk-plain-5ecret"),
    ],
)
def test_a_key_is_accepted_in_every_usual_header(swapd: Swapd, headers: dict[str, str]) -> None:
    assert get(swapd, "/v1/models", **headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        bearer("wrong"),
        bearer(ALL[:-1]),
        bearer(f"{ALL}x"),
        bearer(hash_of(ALL)),
        {"Authorization": ALL},
        {"Authorization": f"Token {ALL}"},
        {"Authorization": "Basic !!!"},
        {"Authorization": f"Basic {base64.b64encode(ALL.encode()).decode()}"},
        {"x-api-key": ""},
        {"Cookie": f"key={ALL}"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/running", "/metrics", "/logs", "/nowhere"])
def test_without_a_valid_key_everything_is_rejected(
    swapd: Swapd, headers: dict[str, str], path: str
) -> None:
    answer = get(swapd, path, **headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    presented = "x-api-key" in headers or "Authorization" in headers
    assert error_of(answer)["code"] == ("invalid_api_key" if presented else "missing_api_key")
    assert "alpha" not in answer.text


def test_health_needs_no_key_and_reveals_nothing_else_without_one(swapd: Swapd) -> None:
    assert get(swapd, "/health").json() == {"status": "ok"}
    assert "loaded" in get(swapd, "/health", **bearer(ALL)).json()


def test_a_key_permits_its_models_and_reveals_no_others(swapd: Swapd) -> None:
    with httpx.Client(base_url=swapd.url, headers=bearer(ONE), trust_env=False) as one:
        assert [m["id"] for m in one.get("/v1/models").json()["data"]] == ["alpha"]
        assert one.post(CHAT, json=chat("alpha")).status_code == 200
        # Models without permission look the same as one that does not exist.
        for name in ("beta", "also", "BETA", "gamma"):
            answers = [one.post(CHAT, json=chat(name))]
            answers += [one.get(f"/upstream/{name}/{path}") for path in ("health", "slots")]
            answers += [one.get(f"/v1/models/{name}")]
            for answer in answers:
                assert answer.status_code == 404
                message = f"there is no model {name!r}; there are: alpha"
                assert error_of(answer)["message"] == message
        assert one.get("/metrics").status_code == 403
        swapd.ask("beta")
        (worker,) = one.get("/running").json()["running"]
        assert (worker["model"], worker["cmd"], worker["proxy"]) == ("alpha", "", "")
        assert one.get("/health").json()["loaded"] == ["alpha"]
        assert set(swapd.http.get("/health").json()["loaded"]) == {"alpha", "beta"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/logs"),
        ("GET", "/%6cogs"),
        ("GET", "/logs?model=alpha"),
        ("POST", "/load?model=alpha"),
        ("POST", "/unload?model=alpha"),
        ("GET", "/unload"),
        ("GET", "/upstream/alpha/slots"),
        ("GET", "/upstream/alpha/%73lots"),
        ("POST", "/upstream/alpha/v1/models/../../slots/0"),
        ("POST", "/upstream/alpha/lora-adapters"),
        ("GET", "/upstream/alpha/headers"),
    ],
)
def test_requests_that_concern_all_clients_need_the_admin_scope(
    swapd: Swapd, method: str, path: str
) -> None:
    swapd.ask("alpha")
    for key, allowed in ((ALL, False), (ADMIN, True)):
        url = httpx.URL(swapd.url, raw_path=path.encode())
        answer = httpx.request(method, url, headers=bearer(key), trust_env=False)
        assert (answer.status_code != 403) is allowed, answer.text
        if not allowed:
            assert error_of(answer)["type"] == "permission_error"


def test_a_key_has_a_rate_limit(swapd: Swapd) -> None:
    statuses = [get(swapd, "/v1/models", **bearer(SLOW)).status_code for _ in range(2)]
    assert statuses == [200, 200]
    answer = get(swapd, "/v1/models", **bearer(SLOW))
    assert answer.status_code == 429
    assert error_of(answer)["code"] == "rate_limit_exceeded"
    assert 0 < int(answer.headers["Retry-After"]) <= 30
    assert get(swapd, "/health", **bearer(SLOW)).status_code == 200, "it needs no key"
    assert get(swapd, "/v1/models", **bearer(ALL)).status_code == 200


def test_a_rate_limiter_allows_a_burst_and_then_an_even_rate() -> None:
    limiter = RateLimiter(60)
    assert [limiter.take(10.0) for _ in range(60)] == [0.0] * 60
    assert limiter.take(10.0) == pytest.approx(1.0)
    assert limiter.take(10.5) == pytest.approx(0.5)
    assert limiter.take(11.0) == 0.0
    assert limiter.take(11.0) > 0
    assert [limiter.take(1e6) for _ in range(60)] == [0.0] * 60
    assert limiter.take(1e6) > 0


def test_the_key_is_withheld_from_workers_and_their_own_keys_are_forwarded(swapd: Swapd) -> None:
    path = "/upstream/alpha/headers"
    seen = get(swapd, path, **bearer(ADMIN)).json()
    assert "authorization" not in seen
    seen = get(swapd, path, Authorization="Bearer of-the-worker", **{"x-api-key": ADMIN}).json()
    assert seen["authorization"] == "Bearer of-the-worker"
    assert "x-api-key" not in seen
    # Some clients send one key, or two valid ones, in every header.
    for first in (ADMIN, ALL):
        seen = get(swapd, path, **bearer(first), **{"x-api-key": ADMIN}).json()
        assert not {"authorization", "x-api-key"} & seen.keys()


def test_the_http_socket_needs_no_key(swapd: Swapd) -> None:
    inner = httpx.HTTPTransport(uds=str(swapd.home / ".swapd/http.sock"))
    with httpx.Client(transport=inner, base_url="http://any.name") as http:
        assert http.get("/logs").status_code == 200
        assert http.post(CHAT, json=chat("beta")).status_code == 200
    assert (swapd.home / ".swapd/http.sock").stat().st_mode & 0o777 == 0o600


def test_no_key_appears_in_any_output(swapd: Swapd) -> None:
    swapd.ask("alpha")
    assert "--api-key" in swapd.worker("alpha")["cmd"]
    for key in ("wrong-5ecret", ALL, ONE):
        get(swapd, "/nowhere", **bearer(key))
        get(swapd, "/logs", **basic(key))
    texts = [swapd.http.get(path).text for path in ("/running", "/metrics", "/logs", "/v1/models")]
    texts += [swapd.log(), (swapd.home / "output").read_text()]
    texts += [(swapd.home / ".swapd/lock").read_text()]
    for text in texts:
        assert "5ecret" not in text
        for key in (ALL, ONE, ADMIN, SLOW):
            assert hash_of(key).partition(":")[2] not in text
    assert 'swapd_http_rejected_total{reason="key"}' in texts[1]


def test_a_command_is_shown_without_its_secrets() -> None:
    words = ["serve", "--api-key", "s1", "--hf-token=s2", "--max-tokens", "5", "env", "HF_TOKEN=s3"]
    words += ["http://me:s4@host/x", "--token", "--verbose", "--api-key-file", "/f", "KEY=s5"]
    shown = redact_argv(words)
    assert not any(f"s{i}" in word for i in range(1, 6) for word in shown)
    for visible in ("serve", "--max-tokens", "5", "--verbose", "/f", "--hf-token=***"):
        assert visible in shown


@pytest.mark.parametrize(
    "words",
    [
        ["sh", "-c", "exec server --api-key 5ecret --port 1"],
        ["sh", "-c", "exec server --api-key='5 5ecret' --port 1"],
        ["sh", "-c", "export HF_TOKEN=5ecret; exec server --port 1"],
        ["sh", "-c", "curl -H 'Authorization: Bearer 5ecret' x --port 1"],
        ["docker", "run", "--env=HF_TOKEN=5ecret", "--port", "1"],
        ["docker", "run", "-e", "AWS_SECRET_ACCESS_KEY=5ecret", "--port", "1"],
        ["server", "--header", "Authorization: Bearer 5ecret", "--port", "1"],
        ["server", "-H", "x-api-key:5ecret", "--port", "1"],
        ["server", "http://host/v1?x=2&api_key=5ecret", "--port", "1"],
        *(
            ["server", flag, "5ecret", "--port", "1"]
            for flag in ("--key", "--auth", "--passphrase", "--credential", "--hf-token")
        ),
    ],
)
def test_values_of_secret_names_are_redacted_in_commands(words: list[str]) -> None:
    shown = " ".join(redact_argv(words))
    assert "5ecret" not in shown
    assert "***" in shown
    assert shown.endswith("--port 1")


def test_values_of_similar_names_are_not_redacted() -> None:
    words = ["server", "--max-tokens", "5", "--tokenizer", "t", "--model", "secrets.gguf"]
    words += ["--override-kv", "tokenizer.ggml.add_bos_token=bool:false", "--keep", "3"]
    words += ["--api-key-file", "/f", "--flash-attn", "auto", "--author", "me", "--key-cache=q8"]
    assert redact_argv(words) == words
    assert redact_text("HF_TOKEN=${env.HF_TOKEN} x") == "HF_TOKEN=${env.HF_TOKEN} x"


def test_a_reload_replaces_the_keys_and_keeps_workers_running(home: Path) -> None:
    models = {"a": fake("a")}
    with Swapd(home, config(models)) as swapd:
        assert swapd.ask("a").status_code == 200
        pid = swapd.worker("a")["pid"]
        swapd.config.write_text(config(models, keys={"one": {"hash": hash_of(ONE)}}))
        eventually(lambda: get(swapd, "/v1/models").status_code == 401)
        assert get(swapd, "/v1/models", **bearer(ONE)).status_code == 200
        swapd.config.write_text(config(models))
        eventually(lambda: get(swapd, "/v1/models").status_code == 200)
        assert swapd.worker("a")["pid"] == pid
        assert alive(pid)
        assert "needs a restart" not in swapd.log()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer k7"},
        {"Authorization": "Bearer k0"},
        {"Authorization": "Bearer k"},
        {"Authorization": "Bearer " + "k" * 8000},
        {"Authorization": "Basic ???"},
    ],
)
def test_every_look_up_compares_with_all_keys(headers: dict[str, str]) -> None:
    """Make the same comparisons for every key, so that the time reveals nothing."""
    keys = [ApiKey(f"k{i}", digest_of(f"k{i}".encode())) for i in range(8)]
    key_store = KeyStore(keys)
    calls: list[Any] = []

    def note(_: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in ("compare_digest", "openssl_sha256"):
            calls.append(function.__name__)

    multidict = CIMultiDict(headers)
    sys.setprofile(note)
    try:
        key_store.authenticate(multidict)
    finally:
        sys.setprofile(None)
    assert calls == ["openssl_sha256"] + ["compare_digest"] * 8


def test_values_of_secret_names_are_redacted_in_text() -> None:
    text = "env:\n  HF_TOKEN: abc def\n  - api_key: 'x y'\nmax_tokens: 5\ntoken: ${env.X}\n"
    text += "tls:\n  cert: /etc/c.pem\n  key: /etc/k.pem  # mine\n"
    redacted = text.replace("abc def", "***").replace("'x y'", "***")
    assert redact_text(text) == redacted
