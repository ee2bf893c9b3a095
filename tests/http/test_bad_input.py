"""Bad input results in one clear sentence in OpenAI's format, and never in a traceback."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.daemon import Swapd, chat, config, error_of
from tests.fixtures import fake

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "The body is empty; a JSON object is expected."),
        (b" \n", 400, "The body is empty; a JSON object is expected."),
        (b"{", 400, "the body is not a JSON object: Input data was truncated"),
        (b"not json", 400, "the body is not a JSON object: JSON is malformed"),
        (b"[1]", 400, "the body is not a JSON object: Expected `object`, got `array`"),
        (b"\xff\xfe", 400, "the body is not a JSON object: JSON is malformed"),
        (b'{"x":' + b"[" * 100_000, 400, "the body is nested too deeply"),
        (b"{}", 400, "the body names no 'model'"),
        (b'{"model": null}', 400, "the body names no 'model'"),
        (b'{"model": 5}', 400, "'model' must be a string"),
        (
            b'{"model": "bart"}',
            404,
            "there is no model 'bart' (did you mean 'bard'?); there are: alice, bard",
        ),
        (b'{"model": ""}', 404, "there is no model ''; there are: alice, bard"),
        (
            b'{"model": "' + b"x" * 5000 + b'"}',
            404,
            f"there is no model '{'x' * 80}\u2026'; there are: alice, bard",
        ),
        (b'{"model": "../../etc/passwd"}', 404, "there is no model '../../etc/passwd'"),
    ],
)
def test_a_body_that_cannot_be_routed_is_rejected(
    both: Swapd, body: bytes, status: int, message: str
) -> None:
    answer = both.http.post(CHAT, content=body)
    assert answer.status_code == status
    assert error_of(answer)["message"].startswith(message)


def test_the_error_for_an_unknown_model_lists_all_models(both: Swapd) -> None:
    error = error_of(both.ask("bart"))
    assert error["message"].endswith("there are: alice, bard")
    assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_a_body_over_the_limit_is_rejected(both: Swapd) -> None:
    answer = both.http.post(CHAT, content=b'{"model": "' + b"x" * 2**20 + b'"}')
    assert answer.status_code == 413
    assert error_of(answer)["message"] == "the body is larger than the limit of 1,048,576 bytes"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": -0.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"messages": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "context"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_worker_are_forwarded(
    both: Swapd, fields: dict[str, Any], word: str, stream: bool
) -> None:
    answer = both.ask("bard", stream=stream, **fields)
    assert answer.status_code == 400, answer.text
    assert word in error_of(answer)["message"]


def test_the_error_for_a_long_prompt_has_both_numbers(both: Swapd) -> None:
    error = both.ask("bard", messages=[{"role": "user", "content": "word " * 3000}]).json()["error"]
    assert error["type"] == "exceed_context_size_error"
    assert error["n_prompt_tokens"] > error["n_ctx"] > 0


def test_a_template_that_fails_is_an_error_of_the_request(home: Path) -> None:
    (home / "broken.jinja").write_text("{{ messages[0].nothing.at_all }}")
    from tests.fixtures import demo

    entry = demo("bard", f"--chat-template-file {home}/broken.jinja")
    with Swapd(home, config({"bard": entry})) as swapd:
        answer = swapd.ask("bard")
        assert answer.status_code == 400
        assert "template" in error_of(answer)["message"]


def test_unknown_paths_and_methods_are_rejected(both: Swapd) -> None:
    answer = both.http.get("/nowhere")
    assert answer.status_code == 404
    assert error_of(answer)["message"] == "there is nothing at GET /nowhere"
    answer = both.http.get(CHAT)
    assert answer.status_code == 405
    assert error_of(answer)["message"] == "/v1/chat/completions takes POST, not GET"
    answer = both.http.get("/upstream/unknown/health")
    assert answer.status_code == 404


def serve(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the daemon in the foreground until it ends."""
    return subprocess.run(
        [sys.executable, "-m", "swapd.daemon", *arguments],
        env={"SWAPD_HOME": str(home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_a_port_in_use_is_one_sentence(home: Path) -> None:
    (home / "config.yaml").write_text(config({"a": fake("a")}))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = serve(home, "--port", str(port))
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"swapd: can't listen on 127.0.0.1 port {port}: Address already")
    assert "choose another one with --port or SWAPD_PORT" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_an_address_of_another_machine_is_one_sentence(home: Path) -> None:
    (home / "config.yaml").write_text(config({"a": fake("a")}))
    ended = serve(home, "--host", "192.0.2.1", "--port", "1")
    assert ended.returncode == 1
    assert ended.stderr.startswith("swapd: can't listen on 192.0.2.1 port 1: ")


def test_a_second_daemon_in_one_data_directory_does_not_start(home: Path) -> None:
    with Swapd(home, config({"a": fake("a")})) as swapd:
        ended = serve(home)
        assert ended.returncode == 1
        assert ended.stderr == (
            f"swapd: swapd runs already as pid {swapd.process.pid} at {swapd.url} for {home}\n"
        )


def test_a_wrong_configuration_does_not_start(home: Path) -> None:
    (home / "config.yaml").write_text("models:\n  a:\n    cmdd: x\n")
    ended = serve(home)
    assert ended.returncode == 1
    assert "config.yaml:3: models.a.cmdd: unknown key; did you mean cmd?" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_hop_by_hop_headers_are_removed_and_others_forwarded(home: Path) -> None:
    with Swapd(home, config({"a": fake("a")})) as swapd:
        seen = swapd.http.get(
            "/upstream/a/headers",
            headers={
                "Connection": "keep-alive, X-Private",
                "X-Private": "1",
                "TE": "trailers",
                "X-Tenant-Id": "t1",
                "Authorization": "Bearer k",
            },
        ).json()
        assert seen["x-tenant-id"] == "t1"
        assert seen["authorization"] == "Bearer k"
        assert not {"x-private", "te"} & seen.keys()
        assert seen["host"].startswith("127.0.0.1:")


def test_fields_are_dropped_and_the_model_renamed_as_configured(home: Path) -> None:
    entry = fake("a", useModelName="real-name", filters={"stripParams": "temperature, top_p"})
    with Swapd(home, config({"a": entry})) as swapd:
        answer = swapd.http.post("/v1/completions", json=chat("a"))
        assert answer.json()["model"] == "real-name"


def test_paths_of_llama_server_are_routed_by_the_model_in_the_body(both: Swapd) -> None:
    counted = both.http.post("/tokenize", json={"model": "bard", "content": "the king"})
    assert counted.status_code == 200
    text = both.http.post("/detokenize", json={"model": "bard", **counted.json()}).json()
    assert text["content"].strip() == "the king"
    rendered = both.http.post("/apply-template", json=chat("alice"))
    assert "Who goes there?" in rendered.json()["prompt"]
    unknown = both.http.post("/v1/audio/speech", json={"model": "bard", "input": "x"})
    assert unknown.status_code == 404
    assert "message" in error_of(unknown)


def test_malformed_http_leaves_no_traceback_in_the_log(both: Swapd) -> None:
    for junk in (b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", both.port)) as sock:
            sock.sendall(junk)
            assert b" 400 " in sock.recv(65536).splitlines()[0]
    assert "Traceback" not in both.log()
    assert "Traceback" not in (both.home / "output").read_text()


def test_percent_encoding_in_a_path_is_kept(home: Path) -> None:
    with Swapd(home, config({"ls/a": fake("a")})) as swapd:
        sent = "/upstream/ls%2Fa/p%3Fq%2F%25/x?k=%23v%20w"
        response = swapd.http.get(httpx.URL(swapd.url, raw_path=sent.encode()))
        assert response.json()["error"]["message"] == "no /p%3Fq%2F%25/x?k=%23v%20w"


MALFORMED_SERVER = """
import sys
from http.server import BaseHTTPRequestHandler as Handler, HTTPServer
class Malformed(Handler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        self.wfile.write(sys.argv[2].encode().decode("unicode_escape").encode())
HTTPServer(("127.0.0.1", int(sys.argv[1])), Malformed).serve_forever()
"""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("what is this\\r\\n\\r\\n", "its response is not valid HTTP"),
        ("HTTP/1.1 200 OK\\r\\nContent-Length: x\\r\\n\\r\\n", "its response is not valid HTTP"),
        (
            "HTTP/1.1 200 OK\\r\\nContent-Length: 9\\r\\n\\r\\nshort",
            "its response broke off, or is not valid HTTP",
        ),
        ("", "it closed the connection without a response"),
    ],
)
def test_malformed_responses_of_an_external_worker_are_described(
    home: Path, answer: str, reason: str
) -> None:
    entry = {"cmd": [sys.executable, "-c", MALFORMED_SERVER, "${PORT}", answer]}
    with Swapd(home, config({"m": entry})) as swapd:
        try:
            answered = swapd.ask("m")
            assert error_of(answered)["message"] == f"the worker of 'm' failed: {reason}"
        except httpx.RemoteProtocolError:
            # After the first bytes of a response, only the end of the connection shows the error.
            assert "short" in answer
        assert f"a request lost its worker: {reason}\n" in swapd.log()
