"""Worker without a model, for tests: a real process with real faults, and no timed waits.

It implements the worker contract, and enough of OpenAI's API to stream numbered words. The
command line selects its behaviour: start when a FIFO allows it, send each word when another FIFO
allows it, crash, ignore SIGTERM, hang. `python -m tests.fake_worker --help` lists all options.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any

from workers.protocol import READY_FD


def options() -> argparse.ArgumentParser:
    """Return the command line. Flags of a real worker without a meaning here are ignored."""
    parser = argparse.ArgumentParser(prog="tests.fake_worker")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--name", default="fake")
    parser.add_argument("--words", type=int, default=3, help="length of an answer")
    parser.add_argument("--load-gate", help="FIFO; ready after a byte is written to it")
    parser.add_argument("--word-gate", help="FIFO; one word for each byte, all at its end")
    parser.add_argument("--fail", default="", help="report this error and exit with 1")
    parser.add_argument("--crash-at-word", type=int, default=-1, help="abort before it")
    parser.add_argument("--until-closed", action="store_true", help="streams end by closing")
    parser.add_argument("--torn", action="store_true", help="begin an event before the first")
    parser.add_argument("--crash-on", default="", help="abort when a request has this in it")
    parser.add_argument("--wedge-on", default="", help="stop answering after such a request")
    parser.add_argument("--exit-after", type=int, default=-1, help="exit at the request after it")
    parser.add_argument("--leak", type=int, default=0, help="leak so many MiB for each response")
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM")
    parser.add_argument("--silent", action="store_true", help=f"send no message on {READY_FD}")
    parser.add_argument("--device", action="append", default=[], help="report this device: JSON")
    parser.add_argument("--child", action="store_true", help="leave a child process behind")
    parser.add_argument(
        "--outlive-stdin", action="store_true", help="ignore its end, as external workers do"
    )
    return parser


class Gate:
    """FIFO that lets a caller pass for each byte, and every caller after its end."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._pipe: IO[bytes] | None = None
        self._lock = threading.Lock()

    def wait(self) -> None:
        if self._path is None:
            return
        with self._lock:
            if self._pipe is None:
                self._pipe = open(self._path, "rb", buffering=0)  # noqa: SIM115, PTH123
            if not self._pipe.read(1):
                self._path = None


class Handler(BaseHTTPRequestHandler):
    """Handler of health and chat requests; `server` is the Fake below."""

    protocol_version = "HTTP/1.1"
    server: Fake

    def do_GET(self) -> None:
        self.server.block_if_wedged()
        if self.path == "/headers":
            self._json({k.lower(): v for k, v in self.headers.items()})
        elif self.path in ("/health", "/ok"):
            self._json({"status": "ok", "pid": os.getpid(), "name": self.server.args.name})
        else:
            self._json({"error": {"message": f"no {self.path}"}}, 404)

    def do_POST(self) -> None:
        with self.server.answering():
            self._answer()
        self.server.leak()

    def _answer(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}"
        self.server.apply_faults(data.decode())
        body: dict[str, Any] = json.loads(data)
        if self.path == "/echo":
            self._json(body)
        elif self.path == "/tokenize":
            self._json({"received": data.decode()})
        elif body.get("stream"):
            self._stream(body)
        else:
            words = "".join(self.server.words(body))
            message = {"role": "assistant", "content": words}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._json({"object": "chat.completion", "model": body["model"], "choices": [choice]})

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        if self.server.args.until_closed:
            self.close_connection = True
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            if self.server.args.torn:
                self._chunk(b"data: ")
            for word in self.server.words(body):
                delta = {"choices": [{"index": 0, "delta": {"content": word}}]}
                self._chunk(b"data: " + json.dumps(delta).encode() + b"\n\n")
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
        except (BrokenPipeError, ConnectionResetError):
            print("the client has gone", flush=True)
            self.close_connection = True

    def _chunk(self, data: bytes) -> None:
        if self.server.args.until_closed:
            self.wfile.write(data)
        else:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _json(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class Fake(ThreadingHTTPServer):
    """HTTP server with the behaviour that the command line selects."""

    daemon_threads = True

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self._answers = 0
        self._leaked: list[bytearray] = []
        self._taken = 0
        self._wedged = threading.Event()
        self._quiet = threading.Condition()
        self._gate = Gate(args.word_gate)
        super().__init__((args.host, args.port), Handler)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """Print one line for a closed connection: tests treat a traceback as a fault."""
        print(f"fake: {client_address}: {sys.exc_info()[1]}", file=sys.stderr, flush=True)

    @contextmanager
    def answering(self) -> Iterator[None]:
        with self._quiet:
            self._answers += 1
        yield
        with self._quiet:
            self._answers -= 1
            self._quiet.notify_all()

    def apply_faults(self, text: str) -> None:
        """Apply the faults that the command line selects for this request."""
        with self._quiet:
            self._taken += 1
            if self._taken == self.args.exit_after + 1:
                os._exit(7)
        if self.args.crash_on and self.args.crash_on in text:
            os.abort()
        if self.args.wedge_on and self.args.wedge_on in text:
            self._wedged.set()
        self.block_if_wedged()

    def block_if_wedged(self) -> None:
        """Never return if the worker is wedged."""
        if self._wedged.is_set():
            threading.Event().wait()

    def leak(self) -> None:
        """Leak memory after a response, and abort when none is left, as a C++ program does."""
        try:
            self._leaked.append(bytearray(self.args.leak * 2**20))
        except MemoryError:
            print("fake: out of memory", file=sys.stderr, flush=True)
            os.abort()

    def finish(self) -> None:
        """Wait until every response is complete, then end the process."""
        with self._quiet:
            self._quiet.wait_for(lambda: self._answers == 0)
        os._exit(0)

    def words(self, body: dict[str, Any]) -> Iterator[str]:
        for i in range(int(body.get("max_tokens", self.args.words))):
            self._gate.wait()
            if i == self.args.crash_at_word:
                os.abort()
            yield f"{self.args.name}{i} "


def send_message(message: dict[str, object]) -> None:
    """Write one line to the descriptor that swapd reads, if there is one."""
    fd = os.environ.get(READY_FD)
    if fd:
        os.write(int(fd), json.dumps(message).encode() + b"\n")


def exit_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    args, _ = options().parse_known_args()
    if args.fail:
        print("fake: about to fail", file=sys.stderr)
        send_message({"error": args.fail})
        sys.exit(1)
    if args.child and os.fork() == 0:
        # A grandchild of swapd that ignores signals and pipes.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()
    if not args.outlive_stdin:
        threading.Thread(target=exit_with_stdin, daemon=True).start()
    Gate(args.load_gate).wait()
    server = Fake(args)

    def stop(*_: object) -> None:
        threading.Thread(target=server.finish).start()

    signal.signal(signal.SIGTERM, signal.SIG_IGN if args.deaf else stop)
    if not args.silent:
        host, port = server.server_address[:2]
        address = {"host": host, "port": port, "pid": os.getpid()}
        devices = [json.loads(device) for device in args.device]
        send_message({"ready": True, **address, "slots": 4, "devices": devices})
    server.serve_forever()


if __name__ == "__main__":
    main()
