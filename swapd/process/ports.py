"""Ports on the loopback: which are free, and who holds one."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
LISTEN = b"0A"
"""A socket's state in these, in the fourth word; its number is the tenth."""
CONTAINER_CLIENTS = frozenset({"docker", "com.docker.cli", "podman", "nerdctl", "container"})
"""Programs whose containers answer on ports that others hold for them."""


def free_port() -> int:
    """A TCP port of the loopback that nobody holds at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def family(pid: int) -> list[psutil.Process]:
    """The process and all that descend from it; empty when it is gone."""
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _members(pid: int) -> Iterator[psutil.Process]:
    """The family, its head first: whoever is content with that spares a look at all processes."""
    try:
        head = psutil.Process(pid)
        yield head
        yield from head.children(recursive=True)
    except psutil.NoSuchProcess:
        return


def foreign_port_owner(port: int, pid: int) -> str:
    """Who listens on `port` and does not belong to `pid`'s family; empty when the family does.

    Where the family holds it but may not be looked at, or a container's helper holds it for its
    child, only a process that can be named counts as a stranger.
    """
    looked_at_all = True
    names = set()
    listeners = _Listeners(port) if all(table.exists() for table in TABLES) else None
    for member in _members(pid):
        try:
            names.add(member.name())
            if _holds(member, port) if listeners is None else _holds_one(member.pid, listeners):
                return ""
        except (psutil.NoSuchProcess, psutil.ZombieProcess, FileNotFoundError, ProcessLookupError):
            continue
        except (psutil.AccessDenied, PermissionError):
            looked_at_all = False
    if names & CONTAINER_CLIENTS:
        return ""
    holder = port_owner(port)
    if holder is not None:
        return f"another process, pid {holder}"
    return "a process that we may not look at" if looked_at_all else ""


class _Listeners:
    """The sockets that listen on a port, as descriptors name them; looked for as far as needed.

    The system tells of them first, and then goes through a table of all connections that there
    may be, which takes milliseconds however few there are.
    """

    def __init__(self, port: int) -> None:
        self._seen: list[str] = []
        self._fresh = _listening(port)

    def __iter__(self) -> Iterator[str]:
        yield from self._seen
        for socket_ in self._fresh:
            self._seen.append(socket_)
            yield socket_


def _listening(port: int) -> Iterator[str]:
    ending = b":%04X" % port
    for table in TABLES:
        with table.open("rb", buffering=256) as lines:
            next(lines)
            for line in lines:
                words = line.split()
                if words[3] != LISTEN:
                    break
                if words[1].endswith(ending):
                    yield f"socket:[{words[9].decode()}]"


def _holds_one(pid: int, sockets: Iterable[str]) -> bool:
    mine = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            mine.add(str(descriptor.readlink()))
        except FileNotFoundError:
            continue  # It has just been closed.
    return any(one in mine for one in sockets)


def _holds(process: psutil.Process, port: int) -> bool:
    return any(
        c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port
        for c in process.net_connections(kind="tcp")
    )


def port_owner(port: int) -> int | None:
    """The pid of the process that listens on `port`, as far as we may know it."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return None
    for c in connections:
        if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid:
            return int(c.pid)
    return None
