"""Options of requests: tenant, priority, keep_alive; and token counts of responses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from swapd.config.access import hash_of
from swapd.http.proxy_routes import parse_keep_alive
from swapd.proxy.forward import reported_tokens
from tests.daemon import Swapd, alive, chat, config, error_of, eventually
from tests.fixtures import GateMaker, fake


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0.0),
        (-1, -1.0),
        (2.5, 2.5),
        ("300", 300.0),
        ("-1", -1.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("-1m", -60.0),
        ("500ms", 0.5),
        (" 10s ", 10.0),
    ],
)
def test_keep_alive_is_parsed_as_in_ollama(value: object, expected: float) -> None:
    assert parse_keep_alive(value) == expected


@pytest.mark.parametrize("value", ["", "soon", "5 m", "5x", "m5", True, [], {}, "5m3", "1e3"])
def test_a_value_that_is_no_duration_is_rejected(value: object) -> None:
    with pytest.raises(ValueError, match="'keep_alive' must be seconds or a duration"):
        parse_keep_alive(value)


@pytest.mark.parametrize("value", [10**400, "1" + "0" * 400, "9" * 400 + "h"])
def test_a_duration_that_is_too_large_is_rejected(value: object) -> None:
    with pytest.raises(ValueError, match="'keep_alive' is too large"):
        parse_keep_alive(value)


@pytest.mark.parametrize(
    ("tail", "tokens"),
    [
        (b'"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}', 7),
        (b'"usage": {"total_tokens": 12}}\n\ndata: [DONE]\n\n', 12),
        (b'"timings":{"prompt_n":5,"prompt_ms":1.0,"predicted_n":6}}', 11),
        (b"data: [DONE]\n\n", 0),
        (b"", 0),
    ],
)
def test_token_counts_are_parsed_from_the_end_of_a_response(tail: bytes, tokens: int) -> None:
    assert reported_tokens(tail) == tokens


def test_keep_alive_0_stops_the_worker_and_a_negative_one_keeps_it(home: Path) -> None:
    models = {"a": fake("a", ttl=1), "b": fake("b")}
    with Swapd(home, config(models)) as swapd:
        swapd.ask("a", keep_alive=-1)
        swapd.ask("b")
        gone = swapd.worker("b")["pid"]
        swapd.ask("b", keep_alive=0)
        eventually(lambda: not alive(gone))
        # b was stopped at once, a stays beyond its ttl of one second.
        swapd.ask("b", keep_alive="2s")
        swapd.until(lambda states: states == {"a": "ready"})
        swapd.ask("a", keep_alive="200ms")
        swapd.until(lambda states: states == {})


def test_running_shows_the_expiry_that_applies(home: Path) -> None:
    models = {"a": fake("a", ttl=500), "pinned": fake("pinned", ttl=500, pinned=True)}
    with Swapd(home, config(models)) as swapd:

        def expires_in() -> float | None:
            # The slot is released a moment after the response.
            eventually(lambda: swapd.worker("a")["idle_seconds"] is not None)
            seconds: float | None = swapd.worker("a")["expires_in_seconds"]
            return seconds

        swapd.ask("pinned")
        swapd.ask("a")
        assert 400 < (expires_in() or 0) <= 500
        assert swapd.worker("pinned")["expires_in_seconds"] is None
        swapd.ask("a", keep_alive="1000s")
        assert 900 < (expires_in() or 0) <= 1000
        swapd.ask("a", keep_alive=-1)
        assert expires_in() is None


def test_an_invalid_keep_alive_is_rejected(both: Swapd) -> None:
    refused = both.ask("bard", keep_alive="soon")
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "keep_alive"


@pytest.mark.parametrize("way", ["header", "user"])
def test_tenants_share_a_slot_fairly(home: Path, gate: GateMaker, way: str) -> None:
    """Queue four requests of one tenant, then one of another: it is served second at the latest."""
    words = gate("words")
    models = {"a": fake("a", f"--word-gate {words.path}", slots=1)}
    with Swapd(home, config(models)) as swapd, ThreadPoolExecutor(6) as pool:
        order: list[str] = []

        def ask(tenant: str) -> None:
            fields: dict[str, Any] = {"max_tokens": 1}
            if way == "user":
                fields["user"] = tenant
            swapd.http.post(
                "/v1/chat/completions",
                json={"model": "a", "messages": [], **fields},
                headers={"X-Tenant-Id": tenant} if way == "header" else {},
            )
            order.append(tenant)

        asked = [pool.submit(ask, "greedy")]
        swapd.until(lambda states: states == {"a": "ready"})
        eventually(lambda: swapd.worker("a")["busy"] == 1)
        for count in range(1, 5):
            asked.append(pool.submit(ask, "greedy"))
            eventually(lambda n=count: swapd.worker("a")["waiting"] == n)  # type: ignore[misc]
        asked.append(pool.submit(ask, "modest"))
        eventually(lambda: swapd.worker("a")["waiting"] == 5)
        for done in range(1, 7):
            words.let()
            eventually(lambda n=done: len(order) >= n)  # type: ignore[misc]
        assert order.index("modest") <= 2
        for one in asked:
            one.result()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/upstream/a/v1/chat/completions"])
def test_a_key_of_higher_priority_is_served_first(home: Path, gate: GateMaker, path: str) -> None:
    words = gate("words")
    models = {"a": fake("a", f"--word-gate {words.path}", slots=1)}
    priorities = {"low": -1, "normal": 0, "high": 1}
    keys = {name: {"hash": hash_of(name), "priority": step} for name, step in priorities.items()}
    keys["watcher"] = {"hash": hash_of("watcher")}
    with Swapd(home, config(models, keys=keys)) as swapd, ThreadPoolExecutor(6) as pool:
        swapd.http.headers["x-api-key"] = "watcher"
        order: list[str] = []

        def ask(key: str) -> None:
            body = chat("a", max_tokens=1)
            assert swapd.http.post(path, json=body, headers={"x-api-key": key}).status_code == 200
            order.append(key)

        asked = [pool.submit(ask, "low")]
        swapd.until(lambda states: states == {"a": "ready"})
        eventually(lambda: swapd.worker("a")["busy"] == 1)
        for count, key in enumerate(("low", "low", "normal", "high"), 1):
            asked.append(pool.submit(ask, key))
            eventually(lambda n=count: swapd.worker("a")["waiting"] == n)  # type: ignore[misc]
        for done in range(1, 6):
            words.let()
            eventually(lambda n=done: len(order) >= n)  # type: ignore[misc]
        assert order == ["low", "high", "normal", "low", "low"]
        for one in asked:
            one.result()


@pytest.mark.parametrize("name", ["", "theirs"])
def test_queue_limits_of_tenants_are_separate_for_each_key(
    home: Path, gate: GateMaker, name: str
) -> None:
    words = gate("words")
    models = {"a": fake("a", f"--word-gate {words.path}", slots=1)}
    keys = {"one": {"hash": hash_of("sk-one")}, "two": {"hash": hash_of("sk-two")}}
    text = config(models, keys=keys, max_per_tenant=1)
    with Swapd(home, text) as swapd, ThreadPoolExecutor(4) as pool:

        def ask(key: str) -> httpx.Response:
            headers = {"x-api-key": key, **({"X-Tenant-Id": name} if name else {})}
            return swapd.http.post("/v1/chat/completions", json=chat("a"), headers=headers)

        swapd.http.headers["x-api-key"] = "sk-one"
        asked = [pool.submit(ask, "sk-one")]
        swapd.until(lambda states: states == {"a": "ready"})
        eventually(lambda: swapd.worker("a")["busy"] == 1)
        asked.append(pool.submit(ask, "sk-one"))
        eventually(lambda: swapd.worker("a")["waiting"] == 1)
        assert error_of(ask("sk-one"))["code"] == "tenant_queue_full"
        asked.append(pool.submit(ask, "sk-two"))
        eventually(lambda: swapd.worker("a")["waiting"] == 2)
        words.open_for_good()
        assert [one.result().status_code for one in asked] == [200] * 3
