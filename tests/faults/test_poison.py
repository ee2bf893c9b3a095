"""Requests that crash every worker, and the requests in the same batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.daemon import Swapd, answer_text, chat, config, error_of, eventually
from tests.fixtures import fake

POISON = [{"role": "user", "content": "drink this"}]


@pytest.fixture
def poison_gate(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """Yield a FIFO on which any number of workers may wait, one after the other."""
    path = tmp_path / "words"
    os.mkfifo(path)
    # Opened for reading and writing, so that both ends exist at any time.
    pipe = os.open(path, os.O_RDWR)
    yield path, pipe
    os.close(pipe)


def _send_poison(swapd: Swapd) -> httpx.Response:
    return swapd.ask("a", messages=POISON)


def _starts(swapd: Swapd) -> int:
    return swapd.log().count("a: started as pid")


def test_poison_is_rejected_after_two_crashes_and_when_repeated(home: Path) -> None:
    with Swapd(home, config({"a": fake("a", "--crash-on drink")})) as swapd:
        assert answer_text(swapd.ask("a", max_tokens=1)) == "a0 "
        first = _send_poison(swapd)
        assert (first.status_code, _starts(swapd)) == (500, 2)
        error = error_of(first)
        assert error["type"] == "poison_error"
        assert error["message"].startswith(
            "this request ended its worker twice and is refused for 10 minutes:"
            " the worker was ended by SIGABRT"
        )
        again = _send_poison(swapd)
        assert (error_of(again)["code"], _starts(swapd)) == ("poison_request", 2)
        assert answer_text(swapd.ask("a", max_tokens=1)) == "a0 "
        assert "a: refused, fingerprint " in swapd.log()
        assert swapd.worker("a")["poison"] == 2
        assert (
            'swapd_requests_rejected_total{reason="poison"} 2.0' in swapd.http.get("/metrics").text
        )


def test_requests_batched_with_poison_are_all_answered(
    home: Path, poison_gate: tuple[Path, int]
) -> None:
    words, pipe = poison_gate
    entry = fake("a", f"--crash-on drink --word-gate {words}", slots=8)
    with Swapd(home, config({"a": entry})) as swapd, ThreadPoolExecutor(6) as pool:
        plain = [pool.submit(swapd.ask, "a", max_tokens=2) for _ in range(4)]
        body = chat("a", max_tokens=2, stream=True)
        stream = pool.submit(swapd.http.post, "/v1/chat/completions", json=body)
        eventually(lambda: [w["busy"] for w in swapd.running()] == [5])
        poison = pool.submit(_send_poison, swapd)
        # Twice with the whole batch, then one at a time.
        eventually(lambda: _starts(swapd) == 3)
        os.write(pipe, b"." * 100)
        assert [answer_text(one.result()) for one in plain] == ["a0 a1 "] * 4
        assert stream.result().text.endswith("data: [DONE]\n\n")
        assert error_of(poison.result())["type"] == "poison_error"
        assert answer_text(swapd.ask("a", max_tokens=1)) == "a0 "
        assert swapd.worker("a")["poison"] == 1


def test_poison_in_a_started_external_stream_is_rejected_when_repeated(home: Path) -> None:
    """The client gets the error, as nothing can be retried; after the second time, a rejection."""
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
        assert answer_text(swapd.ask("a", max_tokens=2)) == "a0 a1 "
