"""Progress reports to clients of streams that wait for their model."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.daemon import Swapd, chat, config
from tests.fixtures import Gate, fake

REQUESTED = {"X-Swapd-Progress": "1"}


def test_requested_comments_do_not_change_the_response(
    home: Path, gate: Callable[[str], Gate]
) -> None:
    load, words = gate("load"), gate("words")
    models = {"a": fake("a", f"--load-gate {load.path} --word-gate {words.path}", slots=1)}
    body = chat("a", stream=True)
    with Swapd(home, config(models)) as swapd:
        with swapd.http.stream(
            "POST", "/v1/chat/completions", json=body, headers=REQUESTED
        ) as first:
            lines = first.iter_lines()
            assert next(lines).startswith(": loading")
            load.open_for_good()
            with swapd.http.stream(
                "POST", "/v1/chat/completions", json=body, headers=REQUESTED
            ) as second:
                waiting = second.iter_lines()
                assert next(waiting) == ": queued 1"
                words.open_for_good()
                second_lines = [line for line in waiting if line]
            first_lines = [line for line in lines if line and not line.startswith(":")]
        plain = swapd.http.post("/v1/chat/completions", json=body)
        unreported = [line for line in plain.text.splitlines() if line]
        assert _texts(first_lines) == _texts(second_lines) == _texts(unreported)
        assert first_lines[-1] == second_lines[-1] == "data: [DONE]"
        assert first.headers["content-type"].startswith("text/event-stream")


def test_send_loading_state_reports_in_reasoning_content(
    home: Path, gate: Callable[[str], Gate]
) -> None:
    load = gate("load")
    models = {"a": fake("a", f"--load-gate {load.path}", sendLoadingState=True)}
    with Swapd(home, config(models)) as swapd:
        body = chat("a", stream=True)
        with swapd.http.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            event = json.loads(next(lines).removeprefix("data: "))
            assert event["object"] == "chat.completion.chunk"
            assert event["choices"][0]["delta"]["reasoning_content"].startswith("swapd: a: loading")
            load.open_for_good()
            assert [line for line in lines if line][-1] == "data: [DONE]"


def test_a_rejection_after_a_report_is_an_error_event(
    home: Path, gate: Callable[[str], Gate]
) -> None:
    load = gate("load")
    models = {"a": fake("a", f"--load-gate {load.path}")}
    with Swapd(home, config(models)) as swapd:
        body = chat("a", stream=True)
        with swapd.http.stream(
            "POST", "/v1/chat/completions", json=body, headers=REQUESTED
        ) as response:
            lines = response.iter_lines()
            assert next(lines).startswith(": loading")
            os.kill(swapd.worker("a")["pid"], signal.SIGABRT)
            seen: list[str] = []
            with pytest.raises(httpx.RemoteProtocolError):
                seen.extend(lines)
        errors = [json.loads(line[6:]) for line in seen if line.startswith("data: ")]
        assert [event["error"]["code"] for event in errors] == ["model_start_failed"]


def test_the_request_of_a_client_that_disconnects_is_cancelled(
    home: Path, gate: Callable[[str], Gate]
) -> None:
    load = gate("load")
    models = {"a": fake("a", f"--load-gate {load.path}")}
    with Swapd(home, config(models)) as swapd:
        body = chat("a", stream=True)
        with swapd.http.stream(
            "POST", "/v1/chat/completions", json=body, headers=REQUESTED
        ) as response:
            assert next(response.iter_lines()).startswith(": loading")
        swapd.until(lambda states: states == {})


def test_a_request_without_stream_gets_no_report(home: Path) -> None:
    with Swapd(home, config({"a": fake("a", sendLoadingState=True)})) as swapd:
        answer = swapd.http.post("/v1/chat/completions", json=chat("a"), headers=REQUESTED)
        assert answer.json()["choices"][0]["message"]["content"]


def _texts(lines: list[str]) -> list[str]:
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return [event["choices"][0]["delta"].get("content", "") for event in events]
