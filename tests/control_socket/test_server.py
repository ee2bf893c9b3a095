"""The control socket, used as with `nc -U`: a real daemon, real workers, lines in and out."""

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


class Client:
    """A connection to the control socket."""

    def __init__(self, home: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(home / ".swapd/swapd.sock"))
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.sock.close()

    def send(self, text: str) -> None:
        self.sock.sendall(text.encode() + b"\n")

    def ask(self, name: object, **fields: Any) -> None:
        self.send(msgspec.json.encode({"id": name, **fields}).decode())

    def receive(self) -> dict[str, Any]:
        line = self.file.readline()
        assert line.endswith(b"\n"), "the connection was closed"
        message: dict[str, Any] = msgspec.json.decode(line)
        return message

    def last(self, name: object) -> dict[str, Any]:
        """Return the last line of a request, if no other request is running."""
        while True:
            message = self.receive()
            assert message["id"] == name
            if "done" in message or "error" in message:
                return message

    def is_closed(self) -> bool:
        return self.file.readline() == b""


@pytest.fixture
def client(both: Swapd) -> Iterator[Client]:
    with Client(both.home) as client:
        yield client


def test_only_the_owner_may_open_the_socket(both: Swapd) -> None:
    mode = (both.home / ".swapd/swapd.sock").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_the_session_in_the_documentation_is_real(both: Swapd, client: Client) -> None:
    page = (ROOT / "docs/socket.md").read_text()
    (block,) = re.findall(r"```console\n\$ nc -U .swapd/swapd.sock\n(.*?)```", page, re.DOTALL)
    both.http.get("/unload")
    received = 0
    for shown in block.splitlines():
        text = shown[2:]
        if shown.startswith("> "):
            client.send(text)
            continue
        assert shown.startswith("< ")
        received += 1
        pattern = ".*".join(re.escape(part) for part in text.split("…"))
        line = client.file.readline().decode().rstrip("\n")
        while '"token"' in line and '"done"' in text:
            line = client.file.readline().decode().rstrip("\n")
        assert re.fullmatch(pattern, line), (text, line)
    assert received == 5


def test_the_tokens_are_the_same_as_over_http(both: Swapd, client: Client) -> None:
    messages = [{"role": "user", "content": "Who goes there?"}]
    whole = both.ask("bard", max_tokens=12, seed=1).json()
    client.ask(7, model="bard", messages=messages, max_tokens=12, temperature=0, seed=1)
    tokens = []
    while "token" in (message := client.receive()):
        assert message["id"] == 7
        tokens.append(message["token"])
    assert len(tokens) > 3, message
    assert "".join(tokens) == whole["choices"][0]["message"]["content"]
    assert message["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert message["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_two_chats_run_at_once_and_list_and_status_follow(both: Swapd, client: Client) -> None:
    client.ask("b", model="bard", prompt="Who?", max_tokens=20)
    client.ask("a", model="alice", prompt="Who?", max_tokens=20)
    ended: set[str] = set()
    tokens = {"a": 0, "b": 0}
    while len(ended) < 2:
        message = client.receive()
        tokens[message["id"]] += "token" in message
        if "done" in message:
            ended.add(message["id"])
    assert all(tokens.values())
    client.ask(1, op="list")
    assert client.receive()["models"] == [
        {"name": "alice", "state": "ready"},
        {"name": "bard", "state": "ready"},
    ]
    client.ask(2, op="status")
    status = client.receive()
    assert status["pid"] == both.process.pid
    assert {w["model"] for w in status["workers"]} == {"bard", "alice"}


@pytest.mark.parametrize(
    ("text", "name", "code", "part"),
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
def test_an_invalid_request_is_answered_and_the_connection_stays_open(
    client: Client, text: str, name: object, code: str, part: str
) -> None:
    client.send(text)
    message = client.receive()
    assert message["id"] == name
    assert message["error"]["code"] == code
    assert part in message["error"]["message"]
    client.ask(9, op="list")
    assert client.receive()["done"] is True


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
def test_the_connection_stays_open_after_any_line(both: Swapd, text: bytes) -> None:
    with Client(both.home) as client:
        client.sock.sendall(text + b"\n")
        client.ask("after", op="list")
        while (message := client.receive())["id"] != "after":
            assert "done" in message or message["error"]["message"]
        assert message["done"] is True


def test_a_line_over_the_limit_closes_the_connection(client: Client) -> None:
    client.send('{"id":1,"model":"bard","prompt":"' + "x" * 2**20 + '"}')
    assert client.receive()["error"]["code"] == "too_large"
    assert client.is_closed()


def test_a_client_that_closes_its_sending_side_gets_its_response(client: Client) -> None:
    client.sock.sendall(b'{"id":1,"model":"bard","prompt":"Who?","max_tokens":4}')
    client.sock.shutdown(socket.SHUT_WR)
    assert client.last(1)["done"] is True
    assert client.is_closed()


@pytest.fixture
def slow(home: Path, gate: Callable[[str], Gate]) -> Iterator[tuple[Swapd, Gate]]:
    """A model with one slot that generates a word when the gate lets it."""
    words = gate("words")
    flags = f"--words 4 --word-gate {words.path}"
    with Swapd(home, config({"slow": fake("slow", flags, slots=1), "bard": demo("bard")})) as s:
        yield s, words


def test_cancel_ends_one_request_and_no_other(slow: tuple[Swapd, Gate]) -> None:
    swapd, words = slow
    with Client(swapd.home) as client:
        client.ask(1, model="slow", prompt="x")
        words.let(1)
        assert "token" in client.receive()
        client.ask(1, model="slow", prompt="x")
        assert "running already" in client.receive()["error"]["message"]
        client.ask(2, model="slow", prompt="x")
        eventually(lambda: swapd.worker("slow")["waiting"] == 1)
        client.ask(1, op="cancel")
        assert client.receive() == {"id": 1, "done": True, "finish_reason": "cancelled"}
        words.open_for_good()
        assert client.last(2)["done"] is True
        # Sent at once, so that the second line arrives before the first request runs.
        client.send('{"id":3,"model":"slow","prompt":"x"}\n{"id":3,"op":"cancel"}')
        assert client.receive() == {"id": 3, "done": True, "finish_reason": "cancelled"}
        eventually(lambda: swapd.worker("slow")["busy"] == 0)


def test_a_disconnect_cancels_the_clients_requests(slow: tuple[Swapd, Gate]) -> None:
    swapd, words = slow
    with Client(swapd.home) as client:
        client.ask(1, model="slow", prompt="x")
        client.ask(2, model="slow", prompt="x")
        words.let(1)
        assert "token" in client.receive()
        eventually(lambda: swapd.worker("slow")["waiting"] == 1)
    eventually(lambda: [swapd.worker("slow")[k] for k in ("busy", "waiting")] == [0, 0])


def test_a_shutdown_finishes_running_requests_and_removes_the_socket(
    slow: tuple[Swapd, Gate],
) -> None:
    swapd, words = slow
    with Client(swapd.home) as client:
        client.ask(1, model="slow", prompt="x")
        words.let(1)
        assert "token" in client.receive()
        swapd.process.send_signal(signal.SIGTERM)
        eventually(lambda: "shutting down within" in swapd.log())
        client.ask(2, model="bard", prompt="x")
        assert client.receive()["error"]["code"] == "shutting_down"
        words.open_for_good()
        assert client.last(1)["done"] is True
        assert client.is_closed()
    assert swapd.process.wait(timeout=20) == 0
    assert not (swapd.home / ".swapd/swapd.sock").exists()


def test_an_immediate_shutdown_ends_streams_without_a_traceback(slow: tuple[Swapd, Gate]) -> None:
    swapd, words = slow
    with Client(swapd.home) as client:
        client.ask(1, model="slow", prompt="x")
        words.let(1)
        assert "token" in client.receive()
        swapd.process.send_signal(signal.SIGQUIT)
        assert "error" in client.last(1)
        assert client.is_closed()
    assert swapd.process.wait(timeout=20) == 0
    assert "Traceback" not in swapd.log()


def test_the_exit_of_a_worker_is_reported(home: Path) -> None:
    dying = fake("dying", "--words 4 --crash-at-word 2")
    failing = fake("failing", "--fail no-reason-at-all")
    with Swapd(home, config({"dying": dying, "failing": failing})), Client(home) as client:
        client.ask(1, model="dying", prompt="x")
        assert "token" in client.receive()
        assert client.last(1)["error"]["code"] == "worker_failed"
        client.ask(2, op="load", model="failing")
        assert client.receive()["error"]["code"] == "model_start_failed"


def test_an_orphaned_socket_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    """Use a data directory whose path is longer than the address of a socket may be."""
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
        assert "there is a file that is not a socket" in swapd.log()
        assert swapd.http.get("/health").status_code == 200
    assert (state / "swapd.sock").read_text() == "mine"
