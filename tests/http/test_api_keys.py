"""API keys: who is let in, to what, how often; and that no key is ever told."""

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
def test_a_key_is_taken_where_clients_put_it(swapd: Swapd, headers: dict[str, str]) -> None:
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
def test_without_a_key_there_is_nothing(swapd: Swapd, headers: dict[str, str], path: str) -> None:
    answer = get(swapd, path, **headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    shown = "x-api-key" in headers or "Authorization" in headers
    assert error_of(answer)["code"] == ("invalid_api_key" if shown else "missing_api_key")
    assert "alpha" not in answer.text


def test_health_needs_no_key_and_tells_nothing_else_without_one(swapd: Swapd) -> None:
    assert get(swapd, "/health").json() == {"status": "ok"}
    assert "loaded" in get(swapd, "/health", **bearer(ALL)).json()


def test_a_key_is_good_for_its_models_and_tells_of_no_others(swapd: Swapd) -> None:
    with httpx.Client(base_url=swapd.url, headers=bearer(ONE), trust_env=False) as one:
        assert [m["id"] for m in one.get("/v1/models").json()["data"]] == ["alpha"]
        assert one.post(CHAT, json=chat("alpha")).status_code == 200
        # Those that there are look no different from the one that there is not.
        for name in ("beta", "also", "BETA", "gamma"):
            answers = [one.post(CHAT, json=chat(name))]
            answers += [one.get(f"/upstream/{name}/{path}") for path in ("health", "slots")]
            answers += [one.get(f"/v1/models/{name}")]
            for answer in answers:
                assert answer.status_code == 404
                told = f"there is no model {name!r}; there are: alpha"
                assert error_of(answer)["message"] == told
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
def test_what_concerns_everybody_needs_the_admin_scope(
    swapd: Swapd, method: str, path: str
) -> None:
    swapd.ask("alpha")
    for key, allowed in ((ALL, False), (ADMIN, True)):
        url = httpx.URL(swapd.url, raw_path=path.encode())
        answer = httpx.request(method, url, headers=bearer(key), trust_env=False)
        assert (answer.status_code != 403) is allowed, answer.text
        if not allowed:
            assert error_of(answer)["type"] == "permission_error"


def test_a_key_has_its_pace(swapd: Swapd) -> None:
    statuses = [get(swapd, "/v1/models", **bearer(SLOW)).status_code for _ in range(2)]
    assert statuses == [200, 200]
    answer = get(swapd, "/v1/models", **bearer(SLOW))
    assert answer.status_code == 429
    assert error_of(answer)["code"] == "rate_limit_exceeded"
    assert 0 < int(answer.headers["Retry-After"]) <= 30
    assert get(swapd, "/health", **bearer(SLOW)).status_code == 200, "which needs no key at all"
    assert get(swapd, "/v1/models", **bearer(ALL)).status_code == 200


def test_a_pace_is_so_many_at_once_and_then_one_every_so_often() -> None:
    pace = RateLimiter(60)
    assert [pace.take(10.0) for _ in range(60)] == [0.0] * 60
    assert pace.take(10.0) == pytest.approx(1.0)
    assert pace.take(10.5) == pytest.approx(0.5)
    assert pace.take(11.0) == 0.0
    assert pace.take(11.0) > 0
    assert [pace.take(1e6) for _ in range(60)] == [0.0] * 60
    assert pace.take(1e6) > 0


def test_the_key_stays_here_and_what_is_the_workers_goes_on(swapd: Swapd) -> None:
    path = "/upstream/alpha/headers"
    seen = get(swapd, path, **bearer(ADMIN)).json()
    assert "authorization" not in seen
    seen = get(swapd, path, Authorization="Bearer of-the-worker", **{"x-api-key": ADMIN}).json()
    assert seen["authorization"] == "Bearer of-the-worker"
    assert "x-api-key" not in seen
    # Some clients show one key, or two of ours, in every way they know.
    for first in (ADMIN, ALL):
        seen = get(swapd, path, **bearer(first), **{"x-api-key": ADMIN}).json()
        assert not {"authorization", "x-api-key"} & seen.keys()


def test_the_sockets_of_the_home_need_no_key(swapd: Swapd) -> None:
    inner = httpx.HTTPTransport(uds=str(swapd.home / ".swapd/http.sock"))
    with httpx.Client(transport=inner, base_url="http://any.name") as http:
        assert http.get("/logs").status_code == 200
        assert http.post(CHAT, json=chat("beta")).status_code == 200
    assert (swapd.home / ".swapd/http.sock").stat().st_mode & 0o777 == 0o600


def test_no_key_is_told_anywhere(swapd: Swapd) -> None:
    swapd.ask("alpha")
    assert "--api-key" in swapd.worker("alpha")["cmd"]
    for key in ("wrong-5ecret", ALL, ONE):
        get(swapd, "/nowhere", **bearer(key))
        get(swapd, "/logs", **basic(key))
    told = [swapd.http.get(path).text for path in ("/running", "/metrics", "/logs", "/v1/models")]
    told += [swapd.log(), (swapd.home / "output").read_text()]
    told += [(swapd.home / ".swapd/lock").read_text()]
    for text in told:
        assert "5ecret" not in text
        for key in (ALL, ONE, ADMIN, SLOW):
            assert hash_of(key).partition(":")[2] not in text
    assert 'swapd_http_rejected_total{reason="key"}' in told[1]


def test_a_command_is_shown_without_its_secrets() -> None:
    words = ["serve", "--api-key", "s1", "--hf-token=s2", "--max-tokens", "5", "env", "HF_TOKEN=s3"]
    words += ["http://me:s4@host/x", "--token", "--verbose", "--api-key-file", "/f", "KEY=s5"]
    shown = redact_argv(words)
    assert not any(f"s{i}" in word for i in range(1, 6) for word in shown)
    for kept in ("serve", "--max-tokens", "5", "--verbose", "/f", "--hf-token=***"):
        assert kept in shown


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
def test_whatever_names_a_secret_hides_it(words: list[str]) -> None:
    shown = " ".join(redact_argv(words))
    assert "5ecret" not in shown
    assert "***" in shown
    assert shown.endswith("--port 1")


def test_what_only_looks_like_a_secret_is_shown() -> None:
    words = ["server", "--max-tokens", "5", "--tokenizer", "t", "--model", "secrets.gguf"]
    words += ["--override-kv", "tokenizer.ggml.add_bos_token=bool:false", "--keep", "3"]
    words += ["--api-key-file", "/f", "--flash-attn", "auto", "--author", "me", "--key-cache=q8"]
    assert redact_argv(words) == words
    assert redact_text("HF_TOKEN=${env.HF_TOKEN} x") == "HF_TOKEN=${env.HF_TOKEN} x"


def test_a_reload_changes_who_is_let_in_and_breaks_nothing(home: Path) -> None:
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
def test_every_look_for_a_key_compares_with_all_of_them(headers: dict[str, str]) -> None:
    """Time can't tell how near a guess was: the same comparisons are made for every one."""
    keys = [ApiKey(f"k{i}", digest_of(f"k{i}".encode())) for i in range(8)]
    keyring = KeyStore(keys)
    calls: list[Any] = []

    def note(_: FrameType, event: str, what: Any) -> None:
        if event == "c_call" and what.__name__ in ("compare_digest", "openssl_sha256"):
            calls.append(what.__name__)

    shown = CIMultiDict(headers)
    sys.setprofile(note)
    try:
        keyring.open(shown)
    finally:
        sys.setprofile(None)
    assert calls == ["openssl_sha256"] + ["compare_digest"] * 8


def test_values_that_are_named_as_secrets_are_not_shown() -> None:
    told = "env:\n  HF_TOKEN: abc def\n  - api_key: 'x y'\nmax_tokens: 5\ntoken: ${env.X}\n"
    told += "tls:\n  cert: /etc/c.pem\n  key: /etc/k.pem  # mine\n"
    shown = told.replace("abc def", "***").replace("'x y'", "***")
    assert redact_text(told) == shown
