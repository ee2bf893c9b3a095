"""The socket, spoken to as `nc -U` would: a real daemon, real workers, lines in and out."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.daemon import ROOT, Swapd, config, eventually
from tests.fixtures import Gate, demo, fake


class Line:
    """A connection to a swapd's socket."""

    def __init__(self, home: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(home / ".swapd/swapd.sock"))
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        self.file.close()
        self.sock.close()

    def raw(self, text: str) -> None:
        self.sock.sendall(text.encode() + b"\n")

    def ask(self, name: object, **fields: Any) -> None:
        self.raw(msgspec.json.encode({"id": name, **fields}).decode())

    def hear(self) -> dict[str, Any]:
        line = self.file.readline()
        assert line.endswith(b"\n"), "the connection was closed"
        heard: dict[str, Any] = msgspec.json.decode(line)
        return heard

    def last(self, name: object) -> dict[str, Any]:
        """The last line of a request, when the only one that runs."""
        while True:
            heard = self.hear()
            assert heard["id"] == name
            if "done" in heard or "error" in heard:
                return heard

    def closed(self) -> bool:
        return self.file.readline() == b""


@pytest.fixture
def line(both: Swapd) -> Iterator[Line]:
    with Line(both.home) as line:
        yield line


def test_only_its_owner_may_open_it(both: Swapd) -> None:
    mode = (both.home / ".swapd/swapd.sock").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_the_session_in_the_documentation(both: Swapd, line: Line) -> None:
    page = (ROOT / "docs/socket.md").read_text()
    (block,) = re.findall(r"```console\n\$ nc -U .swapd/swapd.sock\n(.*?)```", page, re.DOTALL)
    both.http.get("/unload")
    said = 0
    for shown in block.splitlines():
        text = shown[2:]
        if shown.startswith("> "):
            line.raw(text)
            continue
        assert shown.startswith("< ")
        said += 1
        pattern = ".*".join(re.escape(part) for part in text.split("…"))
        heard = line.file.readline().decode().rstrip("\n")
        while '"token"' in heard and '"done"' in text:
            heard = line.file.readline().decode().rstrip("\n")
        assert re.fullmatch(pattern, heard), (text, heard)
    assert said == 5


def test_the_tokens_are_those_of_http(both: Swapd, line: Line) -> None:
    messages = [{"role": "user", "content": "Who goes there?"}]
    whole = both.ask("bard", max_tokens=12, seed=1).json()
    line.ask(7, model="bard", messages=messages, max_tokens=12, temperature=0, seed=1)
    tokens = []
    while "token" in (heard := line.hear()):
        assert heard["id"] == 7
        tokens.append(heard["token"])
    assert len(tokens) > 3, heard
    assert "".join(tokens) == whole["choices"][0]["message"]["content"]
    assert heard["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert heard["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_list_and_status_and_two_at_once(both: Swapd, line: Line) -> None:
    line.ask("b", model="bard", prompt="Who?", max_tokens=20)
    line.ask("a", model="alice", prompt="Who?", max_tokens=20)
    ended: set[str] = set()
    told = {"a": 0, "b": 0}
    while len(ended) < 2:
        heard = line.hear()
        told[heard["id"]] += "token" in heard
        if "done" in heard:
            ended.add(heard["id"])
    assert all(told.values())
    line.ask(1, op="list")
    assert line.hear()["models"] == [
        {"name": "alice", "state": "ready"},
        {"name": "bard", "state": "ready"},
    ]
    line.ask(2, op="status")
    status = line.hear()
    assert status["pid"] == both.process.pid
    assert {w["model"] for w in status["workers"]} == {"bard", "alice"}


@pytest.mark.parametrize(
    ("text", "name", "code", "says"),
    [
        ("hello", None, "bad_request", "not a JSON object"),
        ("[1]", None, "bad_request", "not a JSON object"),
        ('{"a":' + "[" * 100_000, None, "bad_request", "not a JSON object"),
        ('{"op":"list"}', None, "bad_request", "`id`"),
        ('{"id":1.5,"op":"list"}', None, "bad_request", "$.id"),
        ('{"id":1,"op":"lsit"}', 1, "bad_request", "there are: chat, list"),
        ('{"id":1,"prompt":"x"}', 1, "bad_request", "names no 'model'"),
        ('{"id":1,"model":"bard"}', 1, "bad_request", "'messages' or a 'prompt'"),
        ('{"id":1,"model":["bard"],"prompt":"x"}', 1, "bad_request", "$.model"),
        ('{"id":1,"model":"../x","prompt":"x"}', 1, "model_not_found", "there are: alice, bard"),
        ('{"id":1,"model":"bard","messages":7}', 1, "worker_refused", "messages"),
        ('{"id":1,"op":"load"}', 1, "bad_request", "names no 'model'"),
        ('{"id":1,"op":"cancel"}', 1, "not_running", "the id 1"),
    ],
)
def test_what_is_wrong_is_told_and_the_connection_goes_on(
    line: Line, text: str, name: object, code: str, says: str
) -> None:
    line.raw(text)
    heard = line.hear()
    assert heard["id"] == name
    assert heard["error"]["code"] == code
    assert says in heard["error"]["message"]
    line.ask(9, op="list")
    assert line.hear()["done"] is True


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=60).map(lambda data: data.replace(b"\n", b" "))
    | st.fixed_dictionaries(
        {},
        optional={
            "id": st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
            "op": st.sampled_from(
                ["chat", "cancel", "list", "status", "load", "unload", "reload", "x", 1]
            ),
            "model": st.sampled_from(["brad", "", "../x", None, 3, "\x00"]),
            "prompt": st.none() | st.text(max_size=4) | st.integers(),
            "messages": st.none() | st.lists(st.text(max_size=3), max_size=2),
        },
    ).map(lambda fields: json.dumps(fields).encode())
)
@example(b'{"id": 123456789012345678901234567890, "op": "list"}')
@example(b'{"id": "\\ud800", "op": "list"}')
@example(b'{"id": 1e999, "op": "list"}')
@example(b'{"id": "\xff", "op": "list"}')
@example(b'{"id": 1, "op": "list", "op": "status"}')
def test_whatever_a_line_holds_the_connection_goes_on(both: Swapd, text: bytes) -> None:
    with Line(both.home) as line:
        line.sock.sendall(text + b"\n")
        line.ask("after", op="list")
        while (heard := line.hear())["id"] != "after":
            assert "done" in heard or heard["error"]["message"]
        assert heard["done"] is True


def test_a_line_over_the_limit_closes_the_connection(line: Line) -> None:
    line.raw('{"id":1,"model":"bard","prompt":"' + "x" * 2**20 + '"}')
    assert line.hear()["error"]["code"] == "too_large"
    assert line.closed()


def test_who_only_ends_his_own_side_gets_his_answer(line: Line) -> None:
    line.sock.sendall(b'{"id":1,"model":"bard","prompt":"Who?","max_tokens":4}')
    line.sock.shutdown(socket.SHUT_WR)
    assert line.last(1)["done"] is True
    assert line.closed()


@pytest.fixture
def slow(home: Path, gate: Callable[[str], Gate]) -> Iterator[tuple[Swapd, Gate]]:
    """A model with one slot whose words come when they are let."""
    words = gate("words")
    flags = f"--words 4 --word-gate {words.path}"
    with Swapd(home, config({"slow": fake("slow", flags, slots=1), "bard": demo("bard")})) as s:
        yield s, words


def test_cancel_ends_one_and_leaves_the_other(slow: tuple[Swapd, Gate]) -> None:
    swapd, words = slow
    with Line(swapd.home) as line:
        line.ask(1, model="slow", prompt="x")
        words.let(1)
        assert "token" in line.hear()
        line.ask(1, model="slow", prompt="x")
        assert "running already" in line.hear()["error"]["message"]
        line.ask(2, model="slow", prompt="x")
        eventually(lambda: swapd.worker("slow")["waiting"] == 1)
        line.ask(1, op="cancel")
        assert line.hear() == {"id": 1, "done": True, "finish_reason": "cancelled"}
        words.open_for_good()
        assert line.last(2)["done"] is True
        # In one piece, so that the second is there before the first has begun.
        line.raw('{"id":3,"model":"slow","prompt":"x"}\n{"id":3,"op":"cancel"}')
        assert line.hear() == {"id": 3, "done": True, "finish_reason": "cancelled"}
        eventually(lambda: swapd.worker("slow")["busy"] == 0)


def test_who_leaves_takes_his_requests_with_him(slow: tuple[Swapd, Gate]) -> None:
    swapd, words = slow
    with Line(swapd.home) as line:
        line.ask(1, model="slow", prompt="x")
        line.ask(2, model="slow", prompt="x")
        words.let(1)
        assert "token" in line.hear()
        eventually(lambda: swapd.worker("slow")["waiting"] == 1)
    eventually(lambda: [swapd.worker("slow")[k] for k in ("busy", "waiting")] == [0, 0])


def test_a_shutdown_finishes_what_runs_and_takes_the_file_away(slow: tuple[Swapd, Gate]) -> None:
    swapd, words = slow
    with Line(swapd.home) as line:
        line.ask(1, model="slow", prompt="x")
        words.let(1)
        assert "token" in line.hear()
        swapd.process.send_signal(signal.SIGTERM)
        eventually(lambda: "asked to end" in swapd.log())
        line.ask(2, model="bard", prompt="x")
        assert line.hear()["error"]["code"] == "shutting_down"
        words.open_for_good()
        assert line.last(1)["done"] is True
        assert line.closed()
    assert swapd.process.wait(timeout=20) == 0
    assert not (swapd.home / ".swapd/swapd.sock").exists()


def test_an_end_at_once_ends_what_streams_without_a_traceback(slow: tuple[Swapd, Gate]) -> None:
    swapd, words = slow
    with Line(swapd.home) as line:
        line.ask(1, model="slow", prompt="x")
        words.let(1)
        assert "token" in line.hear()
        swapd.process.send_signal(signal.SIGQUIT)
        assert "error" in line.last(1)
        assert line.closed()
    assert swapd.process.wait(timeout=20) == 0
    assert "Traceback" not in swapd.log()


def test_a_worker_that_dies_is_told(home: Path) -> None:
    dying = fake("dying", "--words 4 --crash-at-word 2")
    failing = fake("failing", "--fail no-reason-at-all")
    with Swapd(home, config({"dying": dying, "failing": failing})), Line(home) as line:
        line.ask(1, model="dying", prompt="x")
        assert "token" in line.hear()
        assert line.last(1)["error"]["code"] == "worker_failed"
        line.ask(2, op="load", model="failing")
        assert line.hear()["error"]["code"] == "model_start_failed"


def test_a_left_over_socket_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    """In a home whose path is longer than a socket's address may be."""
    home = tmp_path / ("deep-" * 20) / ("deeper-" * 15)
    state = home / ".swapd"
    state.mkdir(parents=True)
    models = config({"bard": demo("bard")})
    with Swapd(home, models) as swapd:
        swapd.process.kill()
        swapd.process.wait()
    assert (state / "swapd.sock").is_socket()
    with Swapd(home, models):
        assert (state / "swapd.sock").is_socket()
    assert not (state / "swapd.sock").exists()
    (state / "swapd.sock").write_text("mine")
    with Swapd(home, models) as swapd:
        assert "there is a file that is no socket" in swapd.log()
        assert swapd.http.get("/health").status_code == 200
    assert (state / "swapd.sock").read_text() == "mine"
