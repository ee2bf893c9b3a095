"""Resumed streams: after a worker's death the client sees a pause, then the same rest."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import pytest

from tests.control_socket.test_server import Client
from tests.daemon import Swapd, alive, answer_text, chat, config, error_of, eventually
from tests.faults.kill_many import kill_many
from tests.faults.streams import Stream, follow, long_request, read
from tests.fixtures import demo, fake

STREAMS = 32


@pytest.fixture(scope="module")
def bard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swapd]:
    home = tmp_path_factory.mktemp("bard")
    with Swapd(home, config({"bard": demo("bard", "--parallel 4 --ctx-size 8192")})) as swapd:
        yield swapd


def test_a_kill_at_any_token_is_only_a_pause(bard: Swapd) -> None:
    outcome = kill_many(bard, 4, seed=7)
    print(outcome)
    assert outcome.same == 4, outcome.different


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_hundred_kills_are_only_pauses(bard: Swapd) -> None:
    outcome = kill_many(bard, 100, seed=8)
    print(outcome)
    assert outcome.same == 100, outcome.different


def test_a_sampled_answer_resumes_with_the_same_tokens(bard: Swapd) -> None:
    outcome = kill_many(bard, 2, seed=9, temperature=1.0, top_k=20)
    assert outcome.same == 2, outcome.different


def test_a_stream_under_the_upstream_path_resumes_too(bard: Swapd) -> None:
    right, stream = read(bard, long_request("bard")).whole, Stream()
    before, killed = bard.worker("bard"), False
    for stream in follow(
        bard, long_request("bard"), "/upstream/bard/v1/chat/completions?some=query"
    ):
        if len(stream.texts) >= 30 and not killed:
            os.kill(before["pid"], signal.SIGKILL)
            killed = True
    assert stream.whole == right
    assert bard.worker("bard")["resumed"] == before["resumed"] + 1


def test_an_unstreamed_answer_is_computed_again(bard: Swapd) -> None:
    body = chat("bard", max_tokens=900, ignore_eos=True)
    right = answer_text(bard.http.post("/v1/chat/completions", json=body))
    before = bard.worker("bard")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(bard.http.post, "/v1/chat/completions", json=body)
        eventually(lambda: bard.worker("bard")["busy"] == 1)
        os.kill(before["pid"], signal.SIGKILL)
        assert answer_text(answer.result()) == right
    assert bard.worker("bard")["retried"] > before["retried"]
    assert bard.worker("bard")["resumed"] == before["resumed"]


def test_requests_during_a_drain_go_to_the_next_worker(bard: Swapd) -> None:
    """Another process stops the worker: it finishes its stream and accepts no new request."""
    right, stream = read(bard, long_request("bard")).whole, Stream()
    late: list[Future[httpx.Response]] = []
    before, brief = bard.worker("bard"), chat("bard", max_tokens=4)
    expected = answer_text(bard.http.post("/v1/chat/completions", json=brief))
    with ThreadPoolExecutor(5) as pool:
        for stream in follow(bard, long_request("bard")):
            if len(stream.texts) >= 30 and not late:
                os.kill(before["pid"], signal.SIGTERM)
                late = [
                    pool.submit(bard.http.post, "/v1/chat/completions", json=brief)
                    for _ in range(5)
                ]
        assert stream.whole == right
        assert [answer_text(answer.result()) for answer in late] == [expected] * 5
    assert bard.worker("bard")["pid"] != before["pid"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_two_deaths_of_a_worker_with_many_streams_harm_none_of_them(
    home: Path, number: int
) -> None:
    """After two crashes each request is a suspect and served alone; a kill is no crash."""
    flags = f"--parallel {STREAMS} --ctx-size {STREAMS * 1024}"
    with Swapd(home, config({"bard": demo("bard", flags)})) as swapd:
        bodies = [long_request("bard", messages=_messages(n), max_tokens=80) for n in range(4)]
        kills = [Event(), Event()]
        with ThreadPoolExecutor(STREAMS) as pool:
            streams = [
                pool.submit(_signalling, swapd, bodies[n % 4], kills) for n in range(STREAMS)
            ]
            killed = set[int]()
            for kill in kills:
                kill.wait(60)
                pid = eventually(lambda: _ready_other_than(swapd, killed))
                killed.add(pid)
                os.kill(pid, number)
            for stream in streams:
                # Batching changes the rounding of an answer: only its length is known.
                assert stream.result(120).whole[1:] == ("length", 80, True)
        worker = swapd.worker("bard")
        assert worker["poison"] == 0
        # Streams without output at a kill were restarted, and some were complete.
        assert worker["resumed"] >= STREAMS // 2
        assert worker["pid"] not in killed


def _messages(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Number {number}, who goes there?"}]


def _signalling(swapd: Swapd, body: dict[str, object], kills: list[Event]) -> Stream:
    """Return a stream after its end; its progress is signalled."""
    stream = Stream()
    for stream in follow(swapd, body):
        if len(stream.texts) == 10:
            kills[0].set()
        elif len(stream.texts) == 30:
            kills[1].set()
    return stream


def _ready_other_than(swapd: Swapd, killed: set[int]) -> int:
    ready = [w["pid"] for w in swapd.running() if w["state"] == "ready" and w["busy"]]
    return next((pid for pid in ready if pid not in killed), 0)


def test_a_started_stream_of_an_external_worker_ends_with_an_error(home: Path) -> None:
    with Swapd(home, config({"a": fake("a", "--crash-at-word 2")})) as swapd:
        stream = read(swapd, chat("a", stream=True))
        assert stream.error is not None
        assert stream.error["code"] == "worker_failed"
        assert (
            "the worker of 'a' failed: the worker was ended by SIGABRT" in (stream.error["message"])
        )


def test_a_worker_that_exits_after_ten_requests_is_replaced_silently(home: Path) -> None:
    with Swapd(home, config({"a": fake("a", "--exit-after 10"), "b": fake("b")})) as swapd:
        for _ in range(35):
            assert answer_text(swapd.ask("a", max_tokens=2)) == "a0 a1 "
        worker = swapd.worker("a")
        assert (worker["retried"], worker["poison"]) == (3, 0)
        assert 'swapd_requests_retried_total{model="a"} 3.0' in swapd.http.get("/metrics").text


def test_no_worker_outlives_a_swapd_killed_with_many_streams(home: Path) -> None:
    text = config({"bard": demo("bard", f"--parallel {STREAMS} --ctx-size {STREAMS * 1024}")})
    with Swapd(home, text) as swapd, ThreadPoolExecutor(STREAMS) as pool:
        for _ in range(STREAMS):
            pool.submit(swapd.http.post, "/v1/chat/completions", json=long_request("bard"))
        eventually(lambda: [w["busy"] for w in swapd.running()] == [STREAMS])
        pid = swapd.worker("bard")["pid"]
        swapd.process.kill()
        eventually(lambda: not alive(pid), within=2.0)
    with Swapd(home, text) as again:
        assert again.running() == []
        assert answer_text(again.ask("bard"))


def test_a_stream_ends_with_the_reason_when_its_worker_cannot_be_replaced(home: Path) -> None:
    (home / "bard.gguf").symlink_to(Path(demo("bard")["cmd"].split()[2]))
    entry = {"cmd": "${worker} --model bard.gguf --threads 1"}
    with Swapd(home, config({"bard": entry})) as swapd:
        stream = Stream()
        for stream in follow(swapd, long_request("bard")):
            if len(stream.texts) == 10:
                (home / "bard.gguf").unlink(missing_ok=True)
                os.kill(swapd.worker("bard")["pid"], signal.SIGKILL)
                stream.texts.append("")
        assert stream.error is not None
        assert stream.error["code"] == "model_start_failed"
        assert error_of(swapd.ask("bard"))["code"] == "model_start_failed"


def test_a_worker_without_the_resume_feature_is_not_sent_a_resume(home: Path) -> None:
    """The model has another program by the time its worker is killed."""
    with Swapd(home, config({"bard": demo("bard")})) as swapd:
        stream = Stream()
        for stream in follow(swapd, long_request("bard")):
            if len(stream.texts) == 10:
                pid = swapd.worker("bard")["pid"]
                os.kill(pid, signal.SIGSTOP)
                swapd.config.write_text(config({"bard": fake("bard")}))
                eventually(lambda: swapd.pids() - {pid})  # noqa: B023
                os.kill(pid, signal.SIGKILL)
                stream.texts.append("")
        assert stream.error is not None
        worker = "the worker of 'bard' failed: the next worker can't resume the stream"
        assert stream.error["message"] == worker
        assert swapd.worker("bard")["resumed"] == 0


def _talk(line: Client, number: int, swapd: Swapd, kill_at: int) -> tuple[str, str, int]:
    """Chat over the socket; its worker is killed after so many characters."""
    line.ask(number, model="bard", prompt="x", max_tokens=900, ignore_eos=True, temperature=0)
    text, pid = "", 0
    while "done" not in (message := line.receive()):
        assert "error" not in message, message
        text += message.get("token", "")
        if len(text) >= kill_at and not pid:
            pid = swapd.worker("bard")["pid"]
            os.kill(pid, signal.SIGKILL)
    return text, message["finish_reason"], message["usage"]["completion_tokens"]


def test_a_chat_over_the_socket_resumes_too(home: Path) -> None:
    with Swapd(home, config({"bard": demo("bard")})) as swapd, Client(home) as line:
        right = _talk(line, 1, swapd, 10**6)
        assert _talk(line, 2, swapd, 40) == right
        assert swapd.worker("bard")["resumed"] == 1
