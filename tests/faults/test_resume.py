"""A stream outlives its worker: the client sees a pause and then the rest, the same as ever."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import pytest

from tests.control_socket.test_server import Line
from tests.daemon import Swapd, alive, chat, config, error_of, eventually, said
from tests.faults.kill_many import kill_many
from tests.faults.streams import Stream, asked, follow, read
from tests.fixtures import demo, fake

STREAMS = 32


@pytest.fixture(scope="module")
def bard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swapd]:
    home = tmp_path_factory.mktemp("bard")
    with Swapd(home, config({"bard": demo("bard", "--parallel 4 --ctx-size 8192")})) as swapd:
        yield swapd


def test_a_kill_at_any_token_is_a_pause_and_no_more(bard: Swapd) -> None:
    outcome = kill_many(bard, 4, seed=7)
    print(outcome)
    assert outcome.same == 4, outcome.different


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_hundred_kills_are_pauses_and_no_more(bard: Swapd) -> None:
    outcome = kill_many(bard, 100, seed=8)
    print(outcome)
    assert outcome.same == 100, outcome.different


def test_a_drawn_answer_goes_on_as_it_would_have(bard: Swapd) -> None:
    outcome = kill_many(bard, 2, seed=9, temperature=1.0, top_k=20)
    assert outcome.same == 2, outcome.different


def test_a_stream_by_its_models_path_goes_on_too(bard: Swapd) -> None:
    right, stream = read(bard, asked("bard")).whole, Stream()
    before, killed = bard.worker("bard"), False
    for stream in follow(bard, asked("bard"), "/upstream/bard/v1/chat/completions?some=query"):
        if len(stream.texts) >= 30 and not killed:
            os.kill(before["pid"], signal.SIGKILL)
            killed = True
    assert stream.whole == right
    assert bard.worker("bard")["resumed"] == before["resumed"] + 1


def test_an_answer_that_is_not_streamed_is_made_again_without_a_word(bard: Swapd) -> None:
    body = chat("bard", max_tokens=900, ignore_eos=True)
    right = said(bard.http.post("/v1/chat/completions", json=body))
    before = bard.worker("bard")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(bard.http.post, "/v1/chat/completions", json=body)
        eventually(lambda: bard.worker("bard")["busy"] == 1)
        os.kill(before["pid"], signal.SIGKILL)
        assert said(answer.result()) == right
    assert bard.worker("bard")["retried"] > before["retried"]
    assert bard.worker("bard")["resumed"] == before["resumed"]


def test_what_comes_while_a_worker_leaves_is_for_the_next_one(bard: Swapd) -> None:
    """Somebody else tells the worker to end: it finishes its stream, and takes nothing more."""
    right, stream = read(bard, asked("bard")).whole, Stream()
    late: list[Future[httpx.Response]] = []
    before, brief = bard.worker("bard"), chat("bard", max_tokens=4)
    expected = said(bard.http.post("/v1/chat/completions", json=brief))
    with ThreadPoolExecutor(5) as pool:
        for stream in follow(bard, asked("bard")):
            if len(stream.texts) >= 30 and not late:
                os.kill(before["pid"], signal.SIGTERM)
                late = [
                    pool.submit(bard.http.post, "/v1/chat/completions", json=brief)
                    for _ in range(5)
                ]
        assert stream.whole == right
        assert [said(answer.result()) for answer in late] == [expected] * 5
    assert bard.worker("bard")["pid"] != before["pid"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_two_ends_under_many_streams_harm_none_of_them(home: Path, number: int) -> None:
    """After two crashes each is a suspect and served alone; a kill is nobody's fault."""
    flags = f"--parallel {STREAMS} --ctx-size {STREAMS * 1024}"
    with Swapd(home, config({"bard": demo("bard", flags)})) as swapd:
        bodies = [asked("bard", messages=_said(n), max_tokens=80) for n in range(4)]
        kills = [Event(), Event()]
        with ThreadPoolExecutor(STREAMS) as pool:
            streams = [pool.submit(_noting, swapd, bodies[n % 4], kills) for n in range(STREAMS)]
            killed = set[int]()
            for kill in kills:
                kill.wait(60)
                pid = eventually(lambda: _ready_other_than(swapd, killed))
                killed.add(pid)
                os.kill(pid, number)
            for stream in streams:
                # In company an answer is rounded otherwise than alone: only its length is known.
                assert stream.result(120).whole[1:] == ("length", 80, True)
        told = swapd.worker("bard")
        assert told["poison"] == 0
        # Those of which nothing was out at a kill were begun anew, and some were through already.
        assert told["resumed"] >= STREAMS // 2
        assert told["pid"] not in killed


def _said(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Number {number}, who goes there?"}]


def _noting(swapd: Swapd, body: dict[str, object], kills: list[Event]) -> Stream:
    """A stream to its end; that it has got somewhere is noted."""
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


def test_a_foreign_workers_stream_that_was_begun_ends_with_a_word(home: Path) -> None:
    with Swapd(home, config({"a": fake("a", "--crash-at-word 2")})) as swapd:
        stream = read(swapd, chat("a", stream=True))
        assert stream.error is not None
        assert stream.error["code"] == "worker_failed"
        assert (
            "the worker of 'a' failed: the worker was ended by SIGABRT" in (stream.error["message"])
        )


def test_a_worker_that_exits_after_ten_requests_is_replaced_without_a_word(home: Path) -> None:
    with Swapd(home, config({"a": fake("a", "--exit-after 10"), "b": fake("b")})) as swapd:
        for _ in range(35):
            assert said(swapd.ask("a", max_tokens=2)) == "a0 a1 "
        told = swapd.worker("a")
        assert (told["retried"], told["poison"]) == (3, 0)
        assert 'swapd_requests_retried_total{model="a"} 3.0' in swapd.http.get("/metrics").text


def test_no_worker_outlives_a_swapd_that_is_killed_under_many_streams(home: Path) -> None:
    text = config({"bard": demo("bard", f"--parallel {STREAMS} --ctx-size {STREAMS * 1024}")})
    with Swapd(home, text) as swapd, ThreadPoolExecutor(STREAMS) as pool:
        for _ in range(STREAMS):
            pool.submit(swapd.http.post, "/v1/chat/completions", json=asked("bard"))
        eventually(lambda: [w["busy"] for w in swapd.running()] == [STREAMS])
        pid = swapd.worker("bard")["pid"]
        swapd.process.kill()
        eventually(lambda: not alive(pid), within=2.0)
    with Swapd(home, text) as again:
        assert again.running() == []
        assert said(again.ask("bard"))


def test_a_worker_that_can_not_be_replaced_ends_the_stream_with_the_reason(home: Path) -> None:
    (home / "bard.gguf").symlink_to(Path(demo("bard")["cmd"].split()[2]))
    entry = {"cmd": "${worker} --model bard.gguf --threads 1"}
    with Swapd(home, config({"bard": entry})) as swapd:
        stream = Stream()
        for stream in follow(swapd, asked("bard")):
            if len(stream.texts) == 10:
                (home / "bard.gguf").unlink(missing_ok=True)
                os.kill(swapd.worker("bard")["pid"], signal.SIGKILL)
                stream.texts.append("")
        assert stream.error is not None
        assert stream.error["code"] == "model_start_failed"
        assert error_of(swapd.ask("bard"))["code"] == "model_start_failed"


def test_who_does_not_say_that_it_can_is_not_asked_to_go_on(home: Path) -> None:
    """The model is another program's by the time its worker is killed."""
    with Swapd(home, config({"bard": demo("bard")})) as swapd:
        stream = Stream()
        for stream in follow(swapd, asked("bard")):
            if len(stream.texts) == 10:
                pid = swapd.worker("bard")["pid"]
                os.kill(pid, signal.SIGSTOP)
                swapd.config.write_text(config({"bard": fake("bard")}))
                eventually(lambda: swapd.pids() - {pid})  # noqa: B023
                os.kill(pid, signal.SIGKILL)
                stream.texts.append("")
        assert stream.error is not None
        told = "the worker of 'bard' failed: the next one can't go on with what it began"
        assert stream.error["message"] == told
        assert swapd.worker("bard")["resumed"] == 0


def _talk(line: Line, number: int, swapd: Swapd, kill_at: int) -> tuple[str, str, int]:
    """A chat over the socket, whose worker is killed when so many characters have come."""
    line.ask(number, model="bard", prompt="x", max_tokens=900, ignore_eos=True, temperature=0)
    text, pid = "", 0
    while "done" not in (heard := line.hear()):
        assert "error" not in heard, heard
        text += heard.get("token", "")
        if len(text) >= kill_at and not pid:
            pid = swapd.worker("bard")["pid"]
            os.kill(pid, signal.SIGKILL)
    return text, heard["finish_reason"], heard["usage"]["completion_tokens"]


def test_a_chat_over_the_socket_goes_on_too(home: Path) -> None:
    with Swapd(home, config({"bard": demo("bard")})) as swapd, Line(home) as line:
        right = _talk(line, 1, swapd, 10**6)
        assert _talk(line, 2, swapd, 40) == right
        assert swapd.worker("bard")["resumed"] == 1
