"""The control socket: newline-delimited JSON requests over a Unix socket. See docs/socket.md.

A connection's requests are read one after the other and answered concurrently. Each request ends
with one last line, which has `done` or `error`.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec

from swapd.control_socket.chat import chat
from swapd.control_socket.protocol import Fields, Line, OperationError, Send, SocketRequest
from swapd.domain.commands import HTTP_STATUS
from swapd.domain.model_names import ModelNotFoundError
from swapd.domain.models import ModelSpec
from swapd.http.context import AppContext
from swapd.leases import RejectedError
from swapd.system.aio import Tasks

BACKLOG = 64
CLOSE_TIMEOUT = 5.0
"""Seconds that clients have at the end to read the last lines."""


# -- operations ------------------------------------------------------------------------------------


async def execute(context: AppContext, request: SocketRequest, fields: Fields, send: Send) -> Line:
    """Execute a request and return its last line; `send` sends the lines before it.

    Raises OperationError, RejectedError, and the exceptions of `send`.
    """
    if request.op == "chat":
        return await chat(context, _spec(context, request), request, fields, send)
    if request.op in _OPERATIONS:
        return await _OPERATIONS[request.op](context, request)
    names = ", ".join(["chat", *_OPERATIONS, "cancel"])
    raise OperationError("bad_request", f"there is no op {request.op!r}; there are: {names}")


def _spec(context: AppContext, request: SocketRequest) -> ModelSpec:
    if request.model is None:
        raise OperationError("bad_request", "the request names no 'model'")
    try:
        return context.find(request.model)
    except ModelNotFoundError as error:
        raise OperationError("model_not_found", str(error)) from error


async def _list(context: AppContext, _: SocketRequest) -> Line:
    states = context.states()
    listed = context.names().listed()
    return {"models": [{"name": m.name, "state": states.get(m.name, "unloaded")} for m in listed]}


async def _status(context: AppContext, _: SocketRequest) -> Line:
    supervisor = context.supervisor
    workers = [
        {
            "model": snapshot.status.model,
            "state": snapshot.status.state,
            "pid": snapshot.pid,
            "busy": snapshot.status.busy,
            "slots": snapshot.status.slots,
            "waiting": supervisor.waiting(snapshot.status.model),
            "bytes": snapshot.status.bytes,
        }
        for snapshot in supervisor.snapshots()
    ]
    return {"pid": os.getpid(), "closing": supervisor.closing, "workers": workers}


async def _load(context: AppContext, request: SocketRequest) -> Line:
    spec = _spec(context, request)
    await context.supervisor.load(spec.name)
    return {"model": spec.name}


async def _unload(context: AppContext, request: SocketRequest) -> Line:
    name = None if request.model is None else _spec(context, request).name
    return {"unloaded": await context.supervisor.unload(name)}


async def _reload(context: AppContext, _: SocketRequest) -> Line:
    if reason := context.reload():
        raise OperationError("bad_configuration", f"the configuration is not used: {reason}")
    return {}


_OPERATIONS: Mapping[str, Callable[[AppContext, SocketRequest], Awaitable[Line]]] = (
    MappingProxyType(
        {"list": _list, "status": _status, "load": _load, "unload": _unload, "reload": _reload}
    )
)


# -- the socket ------------------------------------------------------------------------------------


class ControlSocket:
    """A listening control socket; created by `open_socket`."""

    def __init__(self, context: AppContext, path: Path) -> None:
        self._context = context
        self._path = path
        self._tasks = Tasks(context.logs.own)
        self._connections: set[SocketConnection] = set()
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Start serving, in place of a socket that a crash has left behind. Raises OSError."""
        sock = bind(self._path)
        limit = self._context.settings.max_body_bytes
        self._server = await asyncio.start_unix_server(self._accept, sock=sock, limit=limit)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = SocketConnection(self._context, reader, writer)
        self._tasks.run(self._serve(connection), "a connection of the control socket")

    async def _serve(self, connection: SocketConnection) -> None:
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)

    async def close(self) -> None:
        """Remove the socket and end the connections, after all requests have ended."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
        ends = [self._tasks.run(c.finish(), "the end of a connection") for c in self._connections]
        if ends:
            await asyncio.wait(ends, timeout=CLOSE_TIMEOUT)
        await self._tasks.end()


async def open_socket(context: AppContext, path: Path) -> ControlSocket:
    """Serve the control socket at `path`, mode 0600, until it is closed. Raises OSError.

    The caller holds the lock of the data directory, so an existing socket is unused.
    """
    control_socket = ControlSocket(context, path)
    await control_socket.listen()
    return control_socket


def bind(path: Path) -> socket.socket:
    """Return a socket that listens at `path` and never admits other users. Raises OSError."""
    if os.path.lexists(path):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(0, "there is a file that is not a socket", str(path))
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Bound by a relative name, because the system limits addresses to about 100 bytes.
    folder, mask = os.open(".", os.O_RDONLY), os.umask(0o177)
    try:
        os.chdir(path.parent)
        sock.bind(path.name)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(mask)
        os.fchdir(folder)
        os.close(folder)
    sock.setblocking(False)
    return sock


# -- connections -----------------------------------------------------------------------------------


class ClientGoneError(Exception):
    """The client has disconnected."""


@dataclass(slots=True)
class SocketJob:
    """A request that is being executed."""

    task: asyncio.Task[None] | None = None
    begun: bool = False
    """True once the task runs; cancelled before that, it could not send its last line."""
    cancelled: bool = False
    ending: bool = False
    """True while its last line is sent."""


class SocketConnection:
    """The connection of one client, with its running requests."""

    def __init__(
        self, context: AppContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._context = context
        self._reader = reader
        self._writer = writer
        self._tasks = Tasks(context.logs.own)
        self._jobs: dict[str | int, SocketJob] = {}
        self._write_lock = asyncio.Lock()

    async def serve(self) -> None:
        """Serve until the client has disconnected; then cancel its running requests."""
        try:
            await self._read_requests()
            if not _is_disconnected(self._writer):
                # The client closed only its sending side and still reads responses.
                await self._wait_for_jobs()
        except ClientGoneError:
            self._context.logs.own.debug("a client of the control socket has disconnected")
        finally:
            await self._tasks.end()
            self._writer.close()

    async def finish(self) -> None:
        """Send the last lines, then close the connection."""
        await self._wait_for_jobs()
        self._writer.close()

    async def _wait_for_jobs(self) -> None:
        running = [job.task for job in self._jobs.values() if job.task is not None]
        if running:
            await asyncio.wait(running)

    async def _read_requests(self) -> None:
        while True:
            try:
                line = await self._reader.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                if error.partial.strip():
                    await self._start(error.partial)
                return
            except asyncio.LimitOverrunError:
                limit = self._context.settings.max_body_bytes
                message = f"the line is longer than the limit of {limit:,} bytes"
                await self._send_error(None, "too_large", message)
                return
            except ConnectionError as error:
                raise ClientGoneError from error
            if line.strip():
                await self._start(line)

    async def _start(self, line: bytes) -> None:
        """Start executing the request in one line."""
        try:
            fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            message = f"the line is not a JSON object: {error}"
            await self._send_error(None, "bad_request", message)
            return
        try:
            request = msgspec.json.decode(line, type=SocketRequest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            message = f"the request is malformed: {error}"
            await self._send_error(_id_of(fields), "bad_request", message)
            return
        if request.op == "cancel":
            await self._cancel(request.id)
        elif request.id in self._jobs and not self._jobs[request.id].ending:
            message = f"a request with the id {request.id!r} is running already"
            await self._send_error(request.id, "bad_request", message)
        else:
            job = self._jobs[request.id] = SocketJob()
            job.task = self._tasks.run(self._run(request, fields, job), f"request {request.id!r}")

    async def _cancel(self, name: str | int) -> None:
        job = self._jobs.get(name)
        if job is None:
            message = f"no request with the id {name!r} is running"
            await self._send_error(name, "not_running", message)
        elif not job.cancelled and not job.ending:
            job.cancelled = True
            if job.task is not None and job.begun:
                job.task.cancel()

    async def _run(self, request: SocketRequest, fields: Fields, job: SocketJob) -> None:
        """Execute one request and send all its lines."""
        job.begun = True
        try:
            cancelled = {"id": request.id, "done": True, "finish_reason": "cancelled"}
            last = cancelled if job.cancelled else await self._execute(request, fields)
            job.ending = True
            await self._send(last or cancelled)
        except ClientGoneError:
            self._context.logs.own.debug("the client of request %r has disconnected", request.id)
        finally:
            if self._jobs.get(request.id) is job:
                del self._jobs[request.id]

    async def _execute(self, request: SocketRequest, fields: Fields) -> Line:
        """Send all lines but the last, which is returned; empty if the request was cancelled."""
        try:
            last = await execute(self._context, request, fields, self._send)
        except OperationError as error:
            return _error_line(request.id, error.code, str(error))
        except RejectedError as error:
            rejection = error.rejection
            return _error_line(request.id, HTTP_STATUS[rejection.reason][2], rejection.message)
        except asyncio.CancelledError:
            if self._jobs[request.id].cancelled:
                return {}
            raise  # The connection itself ends.
        return {"id": request.id, "done": True, **last}

    async def _send_error(self, name: str | int | None, code: str, message: str) -> None:
        await self._send(_error_line(name, code, message))

    async def _send(self, line: Line) -> None:
        """Send a line; return when the client has read enough of those before it."""
        try:
            async with self._write_lock:
                self._writer.write(msgspec.json.encode(line) + b"\n")
                await self._writer.drain()
        except ConnectionError as error:
            raise ClientGoneError from error


def _error_line(name: str | int | None, code: str, message: str) -> Line:
    return {"id": name, "error": {"code": code, "message": message}}


def _id_of(fields: Mapping[str, msgspec.Raw]) -> str | int | None:
    """Return the id of a malformed request, so that the client can match the error to it."""
    try:
        name = msgspec.json.decode(fields.get("id", b"null"))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return name if isinstance(name, str | int) else None


def _is_disconnected(writer: asyncio.StreamWriter) -> bool:
    """Return True if the client has closed the connection and not only its sending side."""
    sock = writer.get_extra_info("socket")
    if writer.is_closing() or sock is None:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))
