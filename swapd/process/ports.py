"""Ports on the loopback: free ports, and the owner of a port."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
LISTEN = b"0A"
"""State of a listening socket, in the fourth word of a line; the inode is the tenth word."""
CONTAINER_CLIENTS = frozenset({"docker", "com.docker.cli", "podman", "nerdctl", "container"})
"""Container clients: their containers' ports are held by other processes."""


def free_port() -> int:
    """Return a TCP port of the loopback that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def family(pid: int) -> list[psutil.Process]:
    """Return the process and all its descendants; empty when it is gone."""
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _process_tree(pid: int) -> Iterator[psutil.Process]:
    """Yield the process, then its descendants.

    A caller that stops after the first one avoids the search through all processes.
    """
    try:
        head = psutil.Process(pid)
        yield head
        yield from head.children(recursive=True)
    except psutil.NoSuchProcess:
        return


def other_port_owner(port: int, pid: int) -> str:
    """Describe the process outside `pid`'s process tree that listens on `port`.

    Empty when the tree holds the port. Where the tree may hold it but can't be inspected, or where
    a container runtime holds it for its child, only a process with a known pid counts as another.
    """
    inspected_all = True
    names = set()
    listeners = _Listeners(port) if all(table.exists() for table in TABLES) else None
    for member in _process_tree(pid):
        try:
            names.add(member.name())
            if _listens(member, port) if listeners is None else _has_socket(member.pid, listeners):
                return ""
        except (psutil.NoSuchProcess, psutil.ZombieProcess, FileNotFoundError, ProcessLookupError):
            continue
        except (psutil.AccessDenied, PermissionError):
            inspected_all = False
    if names & CONTAINER_CLIENTS:
        return ""
    holder = port_owner(port)
    if holder is not None:
        return f"another process, pid {holder}"
    return "a process that swapd may not inspect" if inspected_all else ""


class _Listeners:
    """Sockets that listen on a port, as links of descriptors name them; read as far as needed.

    The kernel lists listening sockets first, and then scans its whole table of connections, which
    takes milliseconds even when there are few.
    """

    def __init__(self, port: int) -> None:
        self._seen: list[str] = []
        self._unread = _listening(port)

    def __iter__(self) -> Iterator[str]:
        yield from self._seen
        for socket_ in self._unread:
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


def _has_socket(pid: int, sockets: Iterable[str]) -> bool:
    held = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            held.add(str(descriptor.readlink()))
        except FileNotFoundError:
            continue  # The descriptor has just been closed.
    return any(socket_ in held for socket_ in sockets)


def _listens(process: psutil.Process, port: int) -> bool:
    return any(
        c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port
        for c in process.net_connections(kind="tcp")
    )


def port_owner(port: int) -> int | None:
    """Return the pid of the process that listens on `port`; None if none is visible."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return None
    for c in connections:
        if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid:
            return int(c.pid)
    return None
