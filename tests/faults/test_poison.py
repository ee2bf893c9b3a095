"""A request that ends every worker it is given to, and those that are beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.daemon import Swapd, chat, config, error_of, eventually, said
from tests.fixtures import fake

POISON = [{"role": "user", "content": "drink this"}]


@pytest.fixture
def brew(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A FIFO that any number of workers may wait at, one after the other."""
    path = tmp_path / "words"
    os.mkfifo(path)
    # Opened for both: so it has a reader and a writer whichever workers come and go.
    pipe = os.open(path, os.O_RDWR)
    yield path, pipe
    os.close(pipe)


def _drink(swapd: Swapd) -> httpx.Response:
    return swapd.ask("a", messages=POISON)


def _starts(swapd: Swapd) -> int:
    return swapd.log().count("a: started as pid")


def test_poison_is_refused_after_two_workers_and_known_when_it_comes_again(home: Path) -> None:
    with Swapd(home, config({"a": fake("a", "--crash-on drink")})) as swapd:
        assert said(swapd.ask("a", max_tokens=1)) == "a0 "
        first = _drink(swapd)
        assert (first.status_code, _starts(swapd)) == (500, 2)
        error = error_of(first)
        assert error["type"] == "poison_error"
        assert error["message"].startswith(
            "this request ended its worker twice and is refused for 10 minutes:"
            " the worker was ended by SIGABRT"
        )
        again = _drink(swapd)
        assert (error_of(again)["code"], _starts(swapd)) == ("poison_request", 2)
        assert said(swapd.ask("a", max_tokens=1)) == "a0 "
        assert "a: refused, fingerprint " in swapd.log()
        assert swapd.worker("a")["poison"] == 2
        assert (
            'swapd_requests_rejected_total{reason="poison"} 2.0' in swapd.http.get("/metrics").text
        )


def test_innocents_beside_poison_are_all_answered(home: Path, brew: tuple[Path, int]) -> None:
    words, pipe = brew
    entry = fake("a", f"--crash-on drink --word-gate {words}", slots=8)
    with Swapd(home, config({"a": entry})) as swapd, ThreadPoolExecutor(6) as pool:
        plain = [pool.submit(swapd.ask, "a", max_tokens=2) for _ in range(4)]
        body = chat("a", max_tokens=2, stream=True)
        stream = pool.submit(swapd.http.post, "/v1/chat/completions", json=body)
        eventually(lambda: [w["busy"] for w in swapd.running()] == [5])
        poison = pool.submit(_drink, swapd)
        # With all beside it, again with all beside it; from then on one at a time.
        eventually(lambda: _starts(swapd) == 3)
        os.write(pipe, b"." * 100)
        assert [said(one.result()) for one in plain] == ["a0 a1 "] * 4
        assert stream.result().text.endswith("data: [DONE]\n\n")
        assert error_of(poison.result())["type"] == "poison_error"
        assert said(swapd.ask("a", max_tokens=1)) == "a0 "
        assert swapd.worker("a")["poison"] == 1


def test_a_foreign_stream_that_was_begun_is_known_when_it_comes_again(home: Path) -> None:
    """Its client is told, as nothing else can be done; after the second time it is refused."""
    with Swapd(home, config({"a": fake("a", "--crash-at-word 2")})) as swapd:
        for _ in range(2):
            with swapd.http.stream(
                "POST", "/v1/chat/completions", json=chat("a", stream=True)
            ) as r:
                assert r.status_code == 200
                with pytest.raises(httpx.RemoteProtocolError):
                    r.read()
        refused = swapd.http.post("/v1/chat/completions", json=chat("a", stream=True))
        assert error_of(refused)["type"] == "poison_error"
        assert said(swapd.ask("a", max_tokens=2)) == "a0 a1 "
