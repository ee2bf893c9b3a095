"""Connections: invalid HTTP, slow clients, idle clients, and clients that do not read."""

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
    """Start a daemon with client timeouts of one second."""
    models = {"a": fake("a", "--words 400000", slots=64), "quick": fake("quick", slots=64)}
    home = tmp_path_factory.mktemp("connections")
    with Swapd(home, config(models, client_timeout=1, max_body="1 MiB")) as swapd:
        yield swapd


def response_to(swapd: Swapd, sent: bytes) -> httpx.Response:
    """Return the response to these bytes, after which swapd closes the connection."""
    with socket.create_connection(("127.0.0.1", swapd.port), timeout=20) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(sent)
        return _read_response(sock)


def _read_response(sock: socket.socket) -> httpx.Response:
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
def test_invalid_http_gets_an_openai_error(swapd: Swapd, sent: bytes, status: int) -> None:
    response = response_to(swapd, sent)
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"].startswith("application/json")
    error_of(response)
    assert SECRET not in response.text
    assert "Traceback" not in swapd.log()
    assert SECRET not in swapd.log()


@pytest.mark.parametrize(
    "body", [b"zz\r\n", b"-5\r\nhello\r\n", b"5\r\nhelloX\r\n0\r\n\r\n", b"F" * 40 + b"\r\n"]
)
def test_a_broken_chunk_is_a_bad_request(swapd: Swapd, body: bytes) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    response = response_to(swapd, head.encode() + body)
    assert response.status_code == 400
    error_of(response)
    assert "Traceback" not in swapd.log()


def test_a_line_of_the_documented_length_is_accepted(swapd: Swapd) -> None:
    assert swapd.http.get("/health?" + "x" * 16_000).status_code == 200
    assert swapd.http.get("/health", headers={"X": "x" * 16_000}).status_code == 200


def test_an_incomplete_head_times_out(swapd: Swapd) -> None:
    begun = now()
    response = response_to(swapd, b"GET /health HTTP/1.1\r\nHost: local")
    assert response.status_code == 408
    assert error_of(response)["message"] == "the request's head was not received in time"
    assert now() - begun >= 1


def _trickle(sock: socket.socket, piece: bytes) -> None:
    """Send `piece` repeatedly until the connection is closed."""
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
def test_a_slow_sender_times_out(swapd: Swapd, before: bytes, piece: bytes) -> None:
    with socket.create_connection(("127.0.0.1", swapd.port), timeout=20) as sock:
        sock.sendall(before)
        threading.Thread(target=_trickle, args=(sock, piece), daemon=True).start()
        response = _read_response(sock)
    assert response.status_code == 408
    assert error_of(response)["code"] == "timeout"


def test_a_body_over_the_limit_is_rejected_before_it_is_sent(swapd: Swapd) -> None:
    with socket.create_connection(("127.0.0.1", swapd.port), timeout=20) as sock:
        sock.sendall(head_of(100_000_000, CHAT, "Connection: close"))
        assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_over_the_limit_is_rejected(swapd: Swapd) -> None:
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
def test_100_continue_is_sent_only_for_an_accepted_request(
    swapd: Swapd, length: int, lines: list[str], status: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", swapd.port), timeout=20) as sock:
        sock.sendall(head_of(length, CHAT, "Expect: 100-continue", *lines))
        assert sock.recv(65536).split()[1] == status


def test_any_other_expectation_is_rejected(swapd: Swapd) -> None:
    response = swapd.http.post(CHAT, json=chat("quick"), headers={"Expect": "a miracle"})
    assert response.status_code == 417
    error_of(response)


def test_a_half_closed_connection_cancels_its_request(home: Path, gate: GateMaker) -> None:
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


def test_a_client_that_reads_nothing_frees_its_slot(swapd: Swapd) -> None:
    with socket.create_connection(("127.0.0.1", swapd.port), timeout=20) as sock:
        _stream(swapd, sock)
        assert swapd.worker("a")["busy"] == 1
        eventually(lambda: swapd.worker("a")["busy"] == 0, within=30)
    assert "closed a connection whose client did not read its response" in swapd.log()


def _wait_until_idle(process: psutil.Process) -> None:
    """Wait until all buffers between workers and clients are full, and the CPU is idle."""

    def cpu_seconds() -> float:
        return sum(sum(p.cpu_times()[:2]) for p in [process, *process.children()])

    before, pause = -1.0, threading.Event()
    while (spent := cpu_seconds()) - before > 0.1:
        before = spent
        pause.wait(1.0)


def test_slow_readers_cost_little_and_block_no_other_request(swapd: Swapd) -> None:
    """32 clients read a byte per second of responses of about 60 MB each."""
    process = psutil.Process(swapd.process.pid)
    swapd.ask("quick")
    swapd.ask("a")
    finished = threading.Event()

    def sip(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not finished.wait(1.0) and sock.recv(1):
                pass

    before, files = process.memory_info().rss, process.num_fds()
    with contextlib.ExitStack() as clients:
        for _ in range(32):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            clients.enter_context(sock)
            sock.connect(("127.0.0.1", swapd.port))
            _stream(swapd, sock)
            threading.Thread(target=sip, args=(sock,), daemon=True).start()
        for _ in range(50):
            assert swapd.ask("quick").status_code == 200
        _wait_until_idle(process)
        grown = process.memory_info().rss - before
        finished.set()
    assert grown < 32 * 2**18, f"{grown / 2**20:.1f} MiB"
    eventually(lambda: swapd.worker("a")["busy"] == 0, within=30)
    eventually(lambda: process.num_fds() <= files + 1, within=30)


def test_a_rejected_request_with_a_missing_body_frees_its_connection(swapd: Swapd) -> None:
    begun = now()
    response = response_to(swapd, head_of(1000, CHAT, "Origin: https://evil.example"))
    assert response.status_code == 403
    assert response.headers["Connection"] == "close"
    assert now() - begun < 8
    whole = head_of(2, CHAT, "Origin: https://evil.example") + b"{}"
    reused = response_to(
        swapd, whole + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert reused.status_code == 403
    assert reused.headers.get("Connection") != "close"
    assert b"HTTP/1.1 200" in reused.content


def test_clients_of_the_port_cannot_use_up_the_connections_of_the_socket(home: Path) -> None:
    crowded = Swapd(home, config({"a": fake("a")}))
    crowded.wrapper = ("sh", "-c", 'ulimit -n 300 && exec "$@"', "sh")
    with crowded as swapd, contextlib.ExitStack() as clients:
        for _ in range(64):
            sock = socket.create_connection(("127.0.0.1", swapd.port), timeout=20)
            clients.enter_context(sock)
            sock.sendall(head_of(1000))
        rejected = response_to(swapd, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert rejected.status_code == 503
        assert error_of(rejected)["type"] == "overloaded_error"
        inner = httpx.HTTPTransport(uds=str(home / ".swapd/http.sock"))
        with httpx.Client(transport=inner, base_url="http://any.name") as http:
            assert http.get("/health").status_code == 200


# -- many connections, and idle ones: a server with short timeouts


class SmallServer:
    """Server that responds `hello`; `/wait` waits for `go_on`, `/endless` writes without end."""

    def __init__(self, limit: int, timeouts: ClientTimeouts) -> None:
        self.limiter = ConnectionLimiter(limit, logging.getLogger("test"))
        self.timeouts = timeouts
        self.go_on = asyncio.Event()
        self.disconnected = asyncio.Event()
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
                self.disconnected.set()
        return web.Response(text="hello")

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        runner = web.ServerRunner(web.Server(self._hello))  # type: ignore[arg-type]
        await runner.setup()
        assert runner.server is not None
        protocol = factory(runner.server, self.limiter, self.timeouts, self.limiter.log)
        listener = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            self.go_on.set()
            listener.close()
            await runner.cleanup()


async def _request(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return reader, writer


async def _hello(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection that has completed one request."""
    reader, writer = await _request(port, "/")
    assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
    return reader, writer


@pytest.mark.parametrize("used", [False, True])
async def test_an_idle_connection_is_closed(used: bool) -> None:
    server = SmallServer(10, ClientTimeouts(60, 20, idle=0.2))
    async with server.serving() as port:
        if used:
            reader, writer = await _hello(port)
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        assert len(server.limiter) == 0


async def test_above_the_limit_the_longest_idle_connection_is_closed() -> None:
    server = SmallServer(3, ClientTimeouts())
    async with server.serving() as port:
        busy, oldest = await _request(port, "/wait"), await _hello(port)
        younger, newcomer = await _hello(port), await _hello(port)
        assert await asyncio.wait_for(oldest[0].read(), 10) == b""
        younger[1].write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"hello" in await younger[0].readuntil(b"hello")
        server.go_on.set()
        assert b"hello" in await busy[0].readuntil(b"hello")
        for _, writer in (busy, oldest, younger, newcomer):
            writer.close()


async def test_a_connection_above_the_limit_gets_503_if_none_is_idle() -> None:
    server = SmallServer(2, ClientTimeouts())
    async with server.serving() as port:
        busy = [await _request(port, "/wait") for _ in range(2)]
        for _ in busy:
            await server.waiting.acquire()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        response = await asyncio.wait_for(reader.read(), 10)
        assert response.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"overloaded"' in response
        writer.close()
        server.go_on.set()
        for reader, writer in busy:
            assert b"hello" in await reader.readuntil(b"hello")
            writer.close()


async def test_a_steady_reader_is_not_disconnected_however_long_the_response() -> None:
    server = SmallServer(2, ClientTimeouts(progress=1.0))
    async with server.serving() as port:
        reader, writer = await _request(port, "/endless")
        begun = now()
        while now() - begun < 4:
            assert await reader.readexactly(200_000), "the response continues"
        # After that the client reads nothing.
        await asyncio.wait_for(server.disconnected.wait(), 20)
        writer.close()
