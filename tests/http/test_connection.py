"""Connections: what is no HTTP, who is slow, who does nothing, who does not read."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest
from aiohttp import web

from swapd.domain.settings import ClientTimeouts
from swapd.http.connection import ConnectionLimiter, factory
from swapd.system.aio import now
from tests.daemon import Swapd, chat, config, error_of, eventually
from tests.fixtures import GateMaker, fake

CHAT = "/v1/chat/completions"
SECRET = "sk-5ecret-in-a-header"


@pytest.fixture(scope="module")
def swapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swapd]:
    """One whose patience ends after a second."""
    models = {"a": fake("a", "--words 400000", slots=64), "quick": fake("quick", slots=64)}
    home = tmp_path_factory.mktemp("connections")
    with Swapd(home, config(models, client_timeout=1, max_body="1 MiB")) as swapd:
        yield swapd


def told(swapd: Swapd, sent: bytes) -> httpx.Response:
    """The answer to these bytes, after which the connection ends by itself."""
    with socket.create_connection(("127.0.0.1", swapd.port), timeout=20) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(sent)
        return _heard(sock)


def _heard(sock: socket.socket) -> httpx.Response:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = [(n, v.strip()) for n, _, v in (line.partition(":") for line in lines)]
    return httpx.Response(int(first.split()[1]), headers=headers, content=body)


def head_of(length: int, path: str = CHAT, *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *lines]
    return "\r\n".join([*head, "", ""]).encode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64 + b"\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (f"GET /{SECRET} HTTP/1.1\r\nbad header {SECRET}\r\n\r\n".encode(), 400),
        (f"GET / HTTP/1.1\r\nAuthorization: Bearer {SECRET}\0\r\n\r\n".encode(), 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 1000 + b"\r\n", 431),
    ],
)
def test_what_is_no_proper_http_is_told_so_in_our_shape(
    swapd: Swapd, sent: bytes, status: int
) -> None:
    answer = told(swapd, sent)
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"].startswith("application/json")
    error_of(answer)
    assert SECRET not in answer.text
    assert "Traceback" not in swapd.log()
    assert SECRET not in swapd.log()


@pytest.mark.parametrize(
    "body", [b"zz\r\n", b"-5\r\nhello\r\n", b"5\r\nhelloX\r\n0\r\n\r\n", b"F" * 40 + b"\r\n"]
)
def test_a_broken_chunk_is_a_bad_request(swapd: Swapd, body: bytes) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = told(swapd, head.encode() + body)
    assert answer.status_code == 400
    error_of(answer)
    assert "Traceback" not in swapd.log()


def test_a_line_may_be_as_long_as_is_documented(swapd: Swapd) -> None:
    assert swapd.http.get("/health?" + "x" * 16_000).status_code == 200
    assert swapd.http.get("/health", headers={"X": "x" * 16_000}).status_code == 200


def test_a_head_that_does_not_come_to_its_end(swapd: Swapd) -> None:
    begun = now()
    answer = told(swapd, b"GET /health HTTP/1.1\r\nHost: local")
    assert answer.status_code == 408
    assert error_of(answer)["message"] == "the request's head did not come in time"
    assert now() - begun >= 1


def _trickle(sock: socket.socket, piece: bytes) -> None:
    """Send it again and again until nobody listens any more."""
    pause = threading.Event()
    with contextlib.suppress(OSError):
        while not pause.wait(0.1):
            sock.sendall(piece)


@pytest.mark.parametrize(
    ("before", "piece"),
    [
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n"),
        (head_of(1000), b"x"),
        (head_of(1000), b""),
    ],
    ids=["a header at a time", "a byte of the body at a time", "nothing of the body"],
)
def test_who_sends_slowly_is_not_waited_for(swapd: Swapd, before: bytes, piece: bytes) -> None:
    with socket.create_connection(("127.0.0.1", swapd.port), timeout=20) as sock:
        sock.sendall(before)
        threading.Thread(target=_trickle, args=(sock, piece), daemon=True).start()
        answer = _heard(sock)
    assert answer.status_code == 408
    assert error_of(answer)["code"] == "timeout"


def test_a_body_over_the_limit_is_refused_before_it_comes(swapd: Swapd) -> None:
    with socket.create_connection(("127.0.0.1", swapd.port), timeout=20) as sock:
        sock.sendall(head_of(100_000_000, CHAT, "Connection: close"))
        assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_body_over_the_limit_that_does_not_say_so(swapd: Swapd) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", swapd.port), timeout=20) as sock:
        sock.sendall(head.encode())
        for _ in range(17):
            sock.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("length", "lines", "status"),
    [
        (100_000_000, [], b"413"),
        (10, ["Origin: https://evil.example"], b"403"),
        (10, [], b"100"),
    ],
)
def test_a_body_is_asked_for_only_when_it_is_wanted(
    swapd: Swapd, length: int, lines: list[str], status: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", swapd.port), timeout=20) as sock:
        sock.sendall(head_of(length, CHAT, "Expect: 100-continue", *lines))
        assert sock.recv(65536).split()[1] == status


def test_what_else_is_expected_is_not_done(swapd: Swapd) -> None:
    answer = swapd.http.post(CHAT, json=chat("quick"), headers={"Expect": "a miracle"})
    assert answer.status_code == 417
    error_of(answer)


def test_a_client_that_says_that_it_is_done_is_gone(home: Path, gate: GateMaker) -> None:
    word = gate("word")
    with Swapd(home, config({"a": fake("a", f"--word-gate {word.path}")})) as swapd:
        body = msgspec.json.encode(chat("a", stream=True))
        with socket.create_connection(("127.0.0.1", swapd.port), timeout=20) as sock:
            sock.sendall(head_of(len(body)) + body)
            word.let()
            assert sock.recv(100)
            assert swapd.worker("a")["busy"] == 1
            sock.shutdown(socket.SHUT_WR)
            eventually(lambda: swapd.worker("a")["busy"] == 0)
        word.open_for_good()


def _stream(swapd: Swapd, sock: socket.socket, tokens: int = 400_000) -> None:
    body = msgspec.json.encode(chat("a", stream=True, max_tokens=tokens))
    sock.sendall(head_of(len(body)) + body)
    assert sock.recv(1)


def test_a_client_that_takes_nothing_gives_its_place_back(swapd: Swapd) -> None:
    with socket.create_connection(("127.0.0.1", swapd.port), timeout=20) as sock:
        _stream(swapd, sock)
        assert swapd.worker("a")["busy"] == 1
        eventually(lambda: swapd.worker("a")["busy"] == 0, within=30)
    assert "a client took nothing of its answer" in swapd.log()


def _at_rest(process: psutil.Process) -> None:
    """Wait until all that lies between workers and clients is full: then nobody computes."""

    def spent() -> float:
        return sum(sum(p.cpu_times()[:2]) for p in [process, *process.children()])

    before, pause = -1.0, threading.Event()
    while (now_spent := spent()) - before > 0.1:
        before = now_spent
        pause.wait(1.0)


def test_slow_readers_cost_little_and_disturb_nobody(swapd: Swapd) -> None:
    """32 clients that read a byte a second, of answers of some 60 MB each."""
    process = psutil.Process(swapd.process.pid)
    swapd.ask("quick")
    swapd.ask("a")
    over = threading.Event()

    def sip(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not over.wait(1.0) and sock.recv(1):
                pass

    before, files = process.memory_info().rss, process.num_fds()
    with contextlib.ExitStack() as open_ones:
        for _ in range(32):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            open_ones.enter_context(sock)
            sock.connect(("127.0.0.1", swapd.port))
            _stream(swapd, sock)
            threading.Thread(target=sip, args=(sock,), daemon=True).start()
        for _ in range(50):
            assert swapd.ask("quick").status_code == 200
        _at_rest(process)
        grown = process.memory_info().rss - before
        over.set()
    assert grown < 32 * 2**18, f"{grown / 2**20:.1f} MiB"
    eventually(lambda: swapd.worker("a")["busy"] == 0, within=30)
    eventually(lambda: process.num_fds() <= files + 1, within=30)


def test_who_is_refused_does_not_keep_a_place_by_a_body(swapd: Swapd) -> None:
    begun = now()
    answer = told(swapd, head_of(1000, CHAT, "Origin: https://evil.example"))
    assert answer.status_code == 403
    assert answer.headers["Connection"] == "close"
    assert now() - begun < 8
    whole = head_of(2, CHAT, "Origin: https://evil.example") + b"{}"
    kept = told(
        swapd, whole + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert kept.status_code == 403
    assert kept.headers.get("Connection") != "close"
    assert b"HTTP/1.1 200" in kept.content


def test_who_crowds_the_port_keeps_nobody_from_the_socket(home: Path) -> None:
    crowded = Swapd(home, config({"a": fake("a")}))
    crowded.wrapper = ("sh", "-c", 'ulimit -n 300 && exec "$@"', "sh")
    with crowded as swapd, contextlib.ExitStack() as open_ones:
        for _ in range(64):
            sock = socket.create_connection(("127.0.0.1", swapd.port), timeout=20)
            open_ones.enter_context(sock)
            sock.sendall(head_of(1000))
        refused = told(swapd, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert refused.status_code == 503
        assert error_of(refused)["type"] == "overloaded_error"
        inner = httpx.HTTPTransport(uds=str(home / ".swapd/http.sock"))
        with httpx.Client(transport=inner, base_url="http://any.name") as http:
            assert http.get("/health").status_code == 200


# -- many connections, and idle ones: a small server of our own kind, with less patience


class Small:
    """A server that answers `hello`, or waits while `/wait` is asked for; `/endless` has no end."""

    def __init__(self, most: int, patience: ClientTimeouts) -> None:
        self.crowd = ConnectionLimiter(most, logging.getLogger("test"))
        self.patience = patience
        self.go_on = asyncio.Event()
        self.broken_off = asyncio.Event()
        self.waiting = asyncio.Semaphore(0)

    async def _hello(self, request: web.Request) -> web.Response:
        if request.path == "/wait":
            self.waiting.release()
            await self.go_on.wait()
        if request.path == "/endless":
            response = web.StreamResponse()
            await response.prepare(request)
            try:
                while True:
                    await response.write(bytes(65536))
            finally:
                self.broken_off.set()
        return web.Response(text="hello")

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        runner = web.ServerRunner(web.Server(self._hello))  # type: ignore[arg-type]
        await runner.setup()
        assert runner.server is not None
        made = factory(runner.server, self.crowd, self.patience, self.crowd.log)
        listener = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            self.go_on.set()
            listener.close()
            await runner.cleanup()


async def _ask(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return reader, writer


async def _hello(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which something has been asked and answered."""
    reader, writer = await _ask(port, "/")
    assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
    return reader, writer


@pytest.mark.parametrize("used", [False, True])
async def test_a_connection_that_nobody_uses_is_closed(used: bool) -> None:
    small = Small(10, ClientTimeouts(60, 20, idle=0.2))
    async with small.serving() as port:
        if used:
            reader, writer = await _hello(port)
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        assert len(small.crowd) == 0


async def test_when_there_are_too_many_the_idle_go_first_and_nobody_who_works() -> None:
    small = Small(3, ClientTimeouts())
    async with small.serving() as port:
        busy, oldest = await _ask(port, "/wait"), await _hello(port)
        younger, newcomer = await _hello(port), await _hello(port)
        assert await asyncio.wait_for(oldest[0].read(), 10) == b""
        younger[1].write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"hello" in await younger[0].readuntil(b"hello")
        small.go_on.set()
        assert b"hello" in await busy[0].readuntil(b"hello")
        for _, writer in (busy, oldest, younger, newcomer):
            writer.close()


async def test_when_all_work_a_newcomer_is_told_so() -> None:
    small = Small(2, ClientTimeouts())
    async with small.serving() as port:
        busy = [await _ask(port, "/wait") for _ in range(2)]
        for _ in busy:
            await small.waiting.acquire()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"overloaded"' in answer
        writer.close()
        small.go_on.set()
        for reader, writer in busy:
            assert b"hello" in await reader.readuntil(b"hello")
            writer.close()


async def test_who_reads_steadily_is_not_let_go_however_much_there_is_to_read() -> None:
    small = Small(2, ClientTimeouts(silence=1.0))
    async with small.serving() as port:
        reader, writer = await _ask(port, "/endless")
        begun = now()
        while now() - begun < 4:
            assert await reader.readexactly(200_000), "an answer that goes on"
        # And then no more.
        await asyncio.wait_for(small.broken_off.wait(), 20)
        writer.close()
