"""Crashing workers, a crashing swapd, shutdowns and reloads, as clients see them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.control_socket.test_server import Client
from tests.daemon import ROOT, Swapd, alive, answer_text, chat, config, error_of, eventually
from tests.fixtures import Gate, demo, fake


def test_a_broken_stream_is_incomplete_for_a_plain_client(home: Path) -> None:
    with (
        Swapd(home, config({"a": fake("a", "--crash-at-word 2")})) as swapd,
        swapd.http.stream("POST", "/v1/chat/completions", json=chat("a", stream=True)) as r,
    ):
        assert r.headers["X-Accel-Buffering"] == "no"
        received = []
        with pytest.raises(httpx.RemoteProtocolError):
            received += [line for line in r.iter_lines() if line]
        assert "data: [DONE]" not in received


def test_a_response_ended_by_a_close_is_incomplete_when_its_worker_died(home: Path) -> None:
    flags = "--until-closed --words 3"
    models = {"well": fake("well", flags), "dying": fake("dying", f"{flags} --crash-at-word 2")}
    with Swapd(home, config(models)) as swapd:
        for name in models:
            body = chat(name, stream=True)
            with swapd.http.stream("POST", "/v1/chat/completions", json=body) as r:
                if name == "well":
                    assert [line for line in r.iter_lines() if line][-1] == "data: [DONE]"
                    continue
                with pytest.raises(httpx.RemoteProtocolError):
                    list(r.iter_lines())


def test_the_error_is_a_separate_event(home: Path) -> None:
    with Swapd(home, config({"a": fake("a", "--torn --crash-at-word 0")})) as swapd:
        received: list[str] = []
        body = chat("a", stream=True)
        with (
            pytest.raises(httpx.RemoteProtocolError),
            swapd.http.stream("POST", "/v1/chat/completions", json=body) as r,
        ):
            received.extend(filter(None, r.iter_lines()))
    assert (received[0], '"error"' in received[1]) == ("data: ", True)


def test_a_failed_start_gives_its_reason_and_a_backoff(home: Path) -> None:
    models = {"a": fake("a", "--fail broken"), "b": fake("b")}
    with Swapd(home, config(models)) as swapd:
        first = swapd.ask("a")
        assert first.status_code == 503
        assert error_of(first)["message"] == (
            "'a' failed: the worker ended with exit status 1: fake: about to fail"
        )
        second = swapd.ask("a")
        assert second.status_code == 503
        assert 1 <= int(second.headers["Retry-After"]) <= 60
        assert swapd.log().count("a: started as pid") == 1
        assert answer_text(swapd.ask("b"))


def test_a_missing_command_is_reported(home: Path) -> None:
    with Swapd(home, config({"a": {"cmd": "no-such-program --port ${PORT}"}})) as swapd:
        message = error_of(swapd.ask("a"))["message"]
        assert message == "'a' failed: no-such-program can't be run: No such file or directory"


def test_a_truncated_gguf_fails_with_the_reason_from_llama_cpp(home: Path) -> None:
    whole = (ROOT / "demo/bard.gguf").read_bytes()
    (home / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with Swapd(home, config({"cut": {"cmd": "${worker} --model cut.gguf"}})) as swapd:
        answer = swapd.ask("cut")
        assert answer.status_code == 503
        assert "not within the file bounds" in error_of(answer)["message"]


def test_no_worker_outlives_a_killed_swapd(home: Path) -> None:
    models = {"bard": demo("bard"), "a": fake("a", "--deaf --child")}
    with Swapd(home, config(models)) as swapd:
        swapd.ask("bard")
        swapd.ask("a")
        pids = [w["pid"] for w in swapd.running()]
        groups = [os.getpgid(pid) for pid in pids]
        swapd.process.kill()
        eventually(lambda: not any(alive(pid) for pid in pids), within=2.0)
        eventually(lambda: not any(_members(group) for group in groups), within=2.0)


def _members(group: int) -> list[int]:
    """Return the live processes of a process group."""
    out = subprocess.run(["ps", "-eo", "pid,pgid,stat"], capture_output=True, text=True, check=True)
    rows = [line.split() for line in out.stdout.splitlines()[1:]]
    return [int(pid) for pid, pgid, stat in rows if int(pgid) == group and stat[0] != "Z"]


def test_a_shutdown_finishes_running_requests_and_rejects_new_ones(
    home: Path, gate: Callable[[str], Gate]
) -> None:
    words = gate("words")
    with Swapd(home, config({"a": fake("a", f"--word-gate {words.path}")})) as swapd:
        with swapd.http.stream("POST", "/v1/chat/completions", json=chat("a", stream=True)) as r:
            words.let()
            lines = r.iter_lines()
            next(lines)
            swapd.process.send_signal(signal.SIGTERM)
            eventually(lambda: swapd.http.get("/health").status_code == 503)
            refused = swapd.ask("a")
            assert refused.status_code == 503
            assert error_of(refused)["code"] == "shutting_down"
            words.open_for_good()
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert swapd.process.wait(timeout=10) == 0


def test_a_real_model_finishes_its_answer_during_a_shutdown(home: Path) -> None:
    with Swapd(home, config({"bard": demo("bard")})) as swapd:
        body = chat("bard", max_tokens=300, ignore_eos=True, stream=True)
        with swapd.http.stream("POST", "/v1/chat/completions", json=body) as r:
            lines = r.iter_lines()
            next(lines)
            swapd.process.send_signal(signal.SIGTERM)
            got = [line for line in lines if line]
        assert got[-1] == "data: [DONE]"
        assert len(got) > 250
        assert swapd.process.wait(timeout=10) == 0


def test_a_second_signal_ends_at_once(home: Path, gate: Callable[[str], Gate]) -> None:
    words = gate("words")
    models = {"a": fake("a", f"--word-gate {words.path}")}
    with Swapd(home, config(models, drain_timeout=600)) as swapd:
        with swapd.http.stream("POST", "/v1/chat/completions", json=chat("a", stream=True)) as r:
            words.let()
            lines = r.iter_lines()
            next(lines)
            swapd.process.send_signal(signal.SIGTERM)
            eventually(lambda: swapd.http.get("/health").status_code == 503)
            swapd.process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert swapd.process.wait(timeout=10) == 0


def test_a_drain_ends_after_its_timeout(home: Path, gate: Callable[[str], Gate]) -> None:
    words = gate("words")
    models = {"a": fake("a", f"--word-gate {words.path}")}
    with Swapd(home, config(models, drain_timeout=0.5)) as swapd:
        with swapd.http.stream("POST", "/v1/chat/completions", json=chat("a", stream=True)) as r:
            words.let()
            lines = r.iter_lines()
            next(lines)
            swapd.process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert swapd.process.wait(timeout=10) == 0


def test_a_changed_entry_does_not_affect_other_models_and_their_streams(
    home: Path, gate: Callable[[str], Gate]
) -> None:
    words = gate("words")
    models: dict[str, Any] = {"a": fake("a", f"--word-gate {words.path}"), "b": fake("b")}
    with Swapd(home, config(models)) as swapd:
        swapd.ask("b")
        with swapd.http.stream("POST", "/v1/chat/completions", json=chat("a", stream=True)) as r:
            words.let()
            lines = r.iter_lines()
            next(lines)
            before = {w["model"]: w["pid"] for w in swapd.running()}
            models["b"] = fake("b", "--words 2")
            swapd.config.write_text(config(models))
            eventually(lambda: len(now := swapd.pids()) == 2 and before["b"] not in now)
            assert swapd.worker("a")["pid"] == before["a"]
            words.open_for_good()
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert answer_text(swapd.http.post("/v1/chat/completions", json={"model": "b"})) == "b0 b1 "
        assert swapd.worker("b")["pid"] != before["b"]
        assert "restarted b" in swapd.log()


def test_a_changed_model_is_never_without_a_worker(home: Path, gate: Callable[[str], Gate]) -> None:
    """Its stream continues in the old worker; the new one is loaded before that one ends."""
    words, load = gate("words"), gate("load")
    models = {"a": fake("a", f"--word-gate {words.path}")}
    with Swapd(home, config(models)) as swapd:
        with swapd.http.stream("POST", "/v1/chat/completions", json=chat("a", stream=True)) as r:
            words.let()
            lines = r.iter_lines()
            next(lines)
            models["a"] = fake("a", f"--words 2 --load-gate {load.path}")
            swapd.config.write_text(config(models))
            load.open()
            assert [w["state"] for w in swapd.running()] == ["ready", "starting"]
            load.open_for_good()
            eventually(lambda: [w["state"] for w in swapd.running()] == ["draining", "ready"])
            assert (
                answer_text(swapd.http.post("/v1/chat/completions", json={"model": "a"}))
                == "a0 a1 "
            )
            words.open_for_good()
            assert [line for line in lines if line][-1] == "data: [DONE]"
        eventually(lambda: [w["state"] for w in swapd.running()] == ["ready"])


def test_policies_change_without_a_restart_and_models_are_added_and_removed(home: Path) -> None:
    models = {"a": fake("a", ttl=100)}
    with Swapd(home, config(models)) as swapd:
        swapd.ask("a")
        pid = swapd.worker("a")["pid"]
        changed = {"a": fake("a", ttl=50, aliases=["also-a"]), "new": fake("new")}
        swapd.config.write_text(config(changed))
        swapd.process.send_signal(signal.SIGHUP)
        eventually(lambda: swapd.worker("a")["ttl"] == 50)
        assert answer_text(swapd.ask("also-a"))
        assert answer_text(swapd.ask("new"))
        assert swapd.worker("a")["pid"] == pid
        swapd.config.write_text(config({"new": fake("new")}))
        swapd.process.send_signal(signal.SIGHUP)
        eventually(lambda: not alive(pid))
        assert swapd.ask("a").status_code == 404


def test_a_replaced_model_file_gets_a_new_worker(home: Path) -> None:
    file = home / "m.gguf"
    shutil.copy(ROOT / "demo/bard.gguf", file)
    entry = {"cmd": f"${{worker}} --model {file} --threads 1"}
    with Swapd(home, config({"m": entry})) as swapd:
        before = answer_text(swapd.ask("m"))
        pid = swapd.worker("m")["pid"]
        swapd.process.send_signal(signal.SIGHUP)
        eventually(lambda: "configuration reloaded: nothing changed" in swapd.log())
        assert swapd.pids() == {pid}
        shutil.copy(ROOT / "demo/alice.gguf", home / "other")
        (home / "other").replace(file)
        swapd.process.send_signal(signal.SIGHUP)
        eventually(lambda: "configuration reloaded: restarted m" in swapd.log())
        eventually(lambda: not alive(pid))
        assert answer_text(swapd.ask("m")) != before


def test_a_broken_configuration_is_reported_and_changes_nothing(home: Path) -> None:
    with Swapd(home, config({"a": fake("a")})) as swapd:
        swapd.ask("a")
        pid = swapd.worker("a")["pid"]
        swapd.config.write_text("models:\n  a:\n    cmdd: x\n")
        eventually(lambda: "the changed configuration is not used" in swapd.log())
        assert "config.yaml:3: models.a.cmdd: unknown key; did you mean cmd?" in swapd.log()
        assert answer_text(swapd.ask("a"))
        assert swapd.worker("a")["pid"] == pid


def test_a_configuration_is_reloaded_on_request(home: Path) -> None:
    with Swapd(home, config({"a": fake("a")})) as swapd, Client(home) as line:
        swapd.config.write_text("models:\n  a:\n    cmdd: x\n")
        line.ask(1, op="reload")
        error = line.receive()["error"]
        assert error["code"] == "bad_configuration"
        assert "config.yaml:3: models.a.cmdd: unknown key" in error["message"]
        swapd.config.write_text(config({"b": fake("b")}))
        line.ask(2, op="reload")
        assert line.receive() == {"id": 2, "done": True}
        line.ask(3, op="list")
        assert line.receive()["models"] == [{"name": "b", "state": "unloaded"}]


def test_an_external_worker_needs_no_contract(home: Path) -> None:
    """`cmd` needs no contract: a server that only listens on its port is a worker."""
    cmd = f"{sys.executable} -m http.server --bind 127.0.0.1 ${{PORT}}"
    (home / "hello.txt").write_text("hello")
    with Swapd(home, config({"files": {"cmd": cmd, "checkEndpoint": "/"}})) as swapd:
        assert swapd.http.get("/upstream/files/hello.txt").text == "hello"
        (worker,) = swapd.running()
        assert str(worker["proxy"]).startswith("http://127.0.0.1:")


ODD = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Odd(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(101 if self.path == "/101" else 200)
        self.send_header("X-Path", self.path)
        self.send_header("X-Long", "x" * (20_000 if self.path == "/long" else 1))
        if self.path != "/101":
            self.send_header("Content-Length", "0")
        self.end_headers()
        if self.path == "/101":
            self.rfile.read()

HTTPServer(("127.0.0.1", int(sys.argv[1])), Odd).serve_forever()
"""


def test_unusual_responses_of_an_external_worker(home: Path) -> None:
    (home / "odd.py").write_text(ODD)
    cmd = f"{sys.executable} {home}/odd.py ${{PORT}}"
    with Swapd(home, config({"odd": {"cmd": cmd, "checkEndpoint": "/"}})) as swapd:
        long = swapd.http.get("/upstream/odd/long")
        assert len(long.headers["X-Long"]) == 20_000
        # An encoded line end is not decoded.
        assert swapd.http.get("/upstream/odd/a%0d%0ab").headers["X-Path"] == "/a%0d%0ab"
        switched = swapd.http.get("/upstream/odd/101")
        assert switched.status_code == 502
        assert error_of(switched)["message"].endswith("it answered with status 101")


def test_queued_requests_are_rejected_when_their_model_fails(
    home: Path, gate: Callable[[str], Gate]
) -> None:
    load = gate("load")
    entry = {"cmd": f"sh -c 'read x < {load.path}; echo no luck; exit 7' -- ${{PORT}}"}
    with Swapd(home, config({"a": entry})) as swapd, ThreadPoolExecutor(5) as pool:
        pending = [pool.submit(swapd.ask, "a") for _ in range(5)]
        load.open()
        eventually(lambda: swapd.worker("a")["waiting"] == 5)
        load.let()
        load.close()
        for response in pending:
            assert response.result().status_code == 503
            assert error_of(response.result())["message"].endswith("exit status 7: no luck")


@pytest.mark.parametrize("delay", [0.0, 0.002])
def test_a_request_right_after_a_kill_is_served_by_another_worker(home: Path, delay: float) -> None:
    """The connection breaks before the worker's exit is reported: the client notices nothing."""
    with Swapd(home, config({"bard": demo("bard"), "a": fake("a")})) as swapd:
        for name in ("bard", "a"):
            assert answer_text(swapd.ask(name))
            pid = swapd.worker(name)["pid"]
            os.kill(pid, signal.SIGKILL)
            threading.Event().wait(delay)
            assert answer_text(swapd.ask(name))
            assert swapd.worker(name)["pid"] != pid


def test_a_client_that_does_not_read_does_not_delay_a_shutdown(home: Path) -> None:
    models = {"a": fake("a", "--words 400000")}
    with Swapd(home, config(models, drain_timeout=0.5)) as swapd:
        body = msgspec.json.encode(chat("a", stream=True, max_tokens=400_000))
        with socket.create_connection(("127.0.0.1", swapd.port)) as sock:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(body)}"
            sock.sendall(head.encode() + b"\r\nHost: localhost\r\n\r\n" + body)
            assert sock.recv(100)
            eventually(lambda: swapd.worker("a")["busy"] == 1)
            swapd.process.send_signal(signal.SIGTERM)
            assert swapd.process.wait(timeout=10) == 0


def test_disconnected_clients_cause_no_traceback(home: Path) -> None:
    with Swapd(home, config({"a": fake("a")})) as swapd:
        body = chat("a", stream=True, max_tokens=20_000)
        for _ in range(10):
            with swapd.http.stream("POST", "/v1/chat/completions", json=body) as r:
                next(r.iter_lines())
        eventually(lambda: swapd.worker("a")["busy"] == 0)
        assert "Traceback" not in swapd.log()
        assert "Traceback" not in (home / "output").read_text()
