"""The socket itself, and what goes over one connection. The protocol: docs/socket.md.

What can be asked for over the socket. Each takes a request and returns its last line.
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
from swapd.control_socket.protocol import Fields, Line, OperationError, Say, SocketRequest
from swapd.domain.commands import HTTP_STATUS
from swapd.domain.model_names import ModelNotFoundError
from swapd.domain.models import ModelSpec
from swapd.http.context import AppContext
from swapd.leases import RejectedError
from swapd.system.aio import Tasks


async def operate(house: AppContext, request: SocketRequest, fields: Fields, say: Say) -> Line:
    """Do what is asked; `say` writes the lines before the last one, which is returned.

    Raises TroubleError, RefusedError, and whatever `say` raises.
    """
    if request.op == "chat":
        return await chat(house, _spec(house, request), request, fields, say)
    if request.op in _OPERATIONS:
        return await _OPERATIONS[request.op](house, request)
    known = ", ".join(["chat", *_OPERATIONS, "cancel"])
    raise OperationError("bad_request", f"there is no op {request.op!r}; there are: {known}")


def _spec(house: AppContext, request: SocketRequest) -> ModelSpec:
    if request.model is None:
        raise OperationError("bad_request", "the request names no 'model'")
    try:
        return house.find(request.model)
    except ModelNotFoundError as error:
        raise OperationError("model_not_found", str(error)) from error


# -- the rest ------------------------------------------------------------------------------------


async def _list(house: AppContext, _: SocketRequest) -> Line:
    states = house.states()
    models = [{"name": m.name, "state": states.get(m.name, "unloaded")} for m in house.listed()]
    return {"models": models}


async def _status(house: AppContext, _: SocketRequest) -> Line:
    workers = [
        {
            "model": sight.status.model,
            "state": sight.status.state,
            "pid": sight.pid,
            "busy": sight.status.busy,
            "slots": sight.status.slots,
            "waiting": house.supervisor.waiting(sight.status.model),
            "bytes": sight.status.bytes,
        }
        for sight in house.supervisor.snapshots()
    ]
    return {"pid": os.getpid(), "closing": house.supervisor.closing, "workers": workers}


async def _load(house: AppContext, request: SocketRequest) -> Line:
    spec = _spec(house, request)
    await house.supervisor.load(spec.name)
    return {"model": spec.name}


async def _unload(house: AppContext, request: SocketRequest) -> Line:
    name = None if request.model is None else _spec(house, request).name
    return {"unloaded": await house.supervisor.unload(name)}


async def _reload(house: AppContext, _: SocketRequest) -> Line:
    if reason := house.reread():
        raise OperationError("bad_configuration", f"the configuration is not used: {reason}")
    return {}


_OPERATIONS: Mapping[str, Callable[[AppContext, SocketRequest], Awaitable[Line]]] = (
    MappingProxyType(
        {"list": _list, "status": _status, "load": _load, "unload": _unload, "reload": _reload}
    )
)


BACKLOG = 64
LAST_LINES_WITHIN = 5.0
"""Seconds that a client has at the end to take the last lines."""


class ControlSocket:
    """A socket that is served; made by `open_socket`."""

    def __init__(self, house: AppContext, path: Path) -> None:
        self._house = house
        self._path = path
        self._tasks = Tasks(house.logs.own)
        self._connections: set[SocketConnection] = set()
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Take the place of what a dead swapd has left, and answer. Raises OSError."""
        sock = bind(self._path)
        limit = self._house.settings.max_body_bytes
        self._server = await asyncio.start_unix_server(self._met, sock=sock, limit=limit)

    def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = SocketConnection(self._house, reader, writer)
        self._tasks.run(self._serve(connection), "a connection of the socket")

    async def _serve(self, connection: SocketConnection) -> None:
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)

    async def close(self) -> None:
        """Once nothing is served any more: take the file away and end the connections."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
        ends = [self._tasks.run(c.finish(), "the end of a connection") for c in self._connections]
        if ends:
            await asyncio.wait(ends, timeout=LAST_LINES_WITHIN)
        await self._tasks.end()


async def open_socket(house: AppContext, path: Path) -> ControlSocket:
    """Serve `house` at `path`, mode 0600, until the door is closed. Raises OSError.

    Whoever calls this holds the lock of the home, so a socket that is there is nobody's.
    """
    door = ControlSocket(house, path)
    await door.listen()
    return door


def bind(path: Path) -> socket.socket:
    """A socket that listens at `path`, closed to other users from its first moment."""
    if os.path.lexists(path):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(0, "there is a file that is no socket", str(path))
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Named from beside it, since the system takes addresses of some 100 bytes at most.
    here, mask = os.open(".", os.O_RDONLY), os.umask(0o177)
    try:
        os.chdir(path.parent)
        sock.bind(path.name)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(mask)
        os.fchdir(here)
        os.close(here)
    sock.setblocking(False)
    return sock


class ClientGoneError(Exception):
    """There is nobody any more to write to."""


@dataclass(slots=True)
class SocketJob:
    """A request that is being answered."""

    task: asyncio.Task[None] | None = None
    begun: bool = False
    """A task that is cancelled before its first step would never say its last line."""
    cancelled: bool = False
    ending: bool = False
    """Its last line is being written."""


class SocketConnection:
    """One client: its requests are read one after the other and answered beside each other."""

    def __init__(
        self, house: AppContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._house = house
        self._reader = reader
        self._writer = writer
        self._tasks = Tasks(house.logs.own)
        self._jobs: dict[str | int, SocketJob] = {}
        self._turn = asyncio.Lock()

    async def serve(self) -> None:
        """Answer until the client has gone; what it still waits for then ends."""
        try:
            await self._read()
            if not _hung_up(self._writer):
                # It has only said that it will ask no more.
                await self._wait()
        except ClientGoneError:
            self._house.logs.own.debug("a client of the socket has gone")
        finally:
            await self._tasks.end()
            self._writer.close()

    async def finish(self) -> None:
        """Let the last lines out, then close."""
        await self._wait()
        self._writer.close()

    async def _wait(self) -> None:
        running = [job.task for job in self._jobs.values() if job.task is not None]
        if running:
            await asyncio.wait(running)

    async def _read(self) -> None:
        while True:
            try:
                line = await self._reader.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                if error.partial.strip():
                    await self._take(error.partial)
                return
            except asyncio.LimitOverrunError:
                limit = self._house.settings.max_body_bytes
                message = f"the line is longer than the limit of {limit:,} bytes"
                await self._fail(None, "too_large", message)
                return
            except ConnectionError as error:
                raise ClientGoneError from error
            if line.strip():
                await self._take(line)

    async def _take(self, line: bytes) -> None:
        """Begin what one line asks for."""
        try:
            fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            await self._fail(None, "bad_request", f"the line is not a JSON object: {error}")
            return
        try:
            request = msgspec.json.decode(line, type=SocketRequest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            await self._fail(_id_of(fields), "bad_request", f"the request is malformed: {error}")
            return
        if request.op == "cancel":
            await self._cancel(request.id)
        elif request.id in self._jobs and not self._jobs[request.id].ending:
            message = f"a request with the id {request.id!r} is running already"
            await self._fail(request.id, "bad_request", message)
        else:
            job = self._jobs[request.id] = SocketJob()
            job.task = self._tasks.run(self._run(request, fields, job), f"request {request.id!r}")

    async def _cancel(self, name: str | int) -> None:
        job = self._jobs.get(name)
        if job is None:
            await self._fail(name, "not_running", f"no request with the id {name!r} is running")
        elif not job.cancelled and not job.ending:
            job.cancelled = True
            if job.task is not None and job.begun:
                job.task.cancel()

    async def _run(self, request: SocketRequest, fields: Fields, job: SocketJob) -> None:
        """Answer one request up to its last line."""
        job.begun = True
        try:
            cancelled = {"id": request.id, "done": True, "finish_reason": "cancelled"}
            last = cancelled if job.cancelled else await self._answer(request, fields)
            job.ending = True
            await self._say(last or cancelled)
        except ClientGoneError:
            self._house.logs.own.debug("the client of request %r has gone", request.id)
        finally:
            if self._jobs.get(request.id) is job:
                del self._jobs[request.id]

    async def _answer(self, request: SocketRequest, fields: Fields) -> Line:
        """Everything but the last line, which is returned; empty when it was cancelled."""
        try:
            last = await operate(self._house, request, fields, self._say)
        except OperationError as error:
            return _error(request.id, error.code, str(error))
        except RejectedError as error:
            return _error(
                request.id, HTTP_STATUS[error.rejection.reason][2], error.rejection.message
            )
        except asyncio.CancelledError:
            if self._jobs[request.id].cancelled:
                return {}
            raise  # The whole connection ends.
        return {"id": request.id, "done": True, **last}

    async def _fail(self, name: str | int | None, code: str, message: str) -> None:
        await self._say(_error(name, code, message))

    async def _say(self, line: Line) -> None:
        """Write a line; returns when the client keeps up."""
        try:
            async with self._turn:
                self._writer.write(msgspec.json.encode(line) + b"\n")
                await self._writer.drain()
        except ConnectionError as error:
            raise ClientGoneError from error


def _error(name: str | int | None, code: str, message: str) -> Line:
    return {"id": name, "error": {"code": code, "message": message}}


def _id_of(fields: Mapping[str, msgspec.Raw]) -> str | int | None:
    """The id of a request that is wrong otherwise, so that its error finds it."""
    try:
        name = msgspec.json.decode(fields.get("id", b"null"))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return name if isinstance(name, str | int) else None


def _hung_up(writer: asyncio.StreamWriter) -> bool:
    """Whether the client is gone, and has not just closed its writing side."""
    sock = writer.get_extra_info("socket")
    if writer.is_closing() or sock is None:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))
