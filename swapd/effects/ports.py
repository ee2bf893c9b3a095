"""Ports on the loopback: which are free, and who holds one."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import psutil

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


def stranger_on(port: int, pid: int) -> str:
    """Who listens on `port` and does not belong to `pid`'s family; empty when the family does.

    Where the family holds it but may not be looked at, or a container's helper holds it for its
    child, only a process that can be named counts as a stranger.
    """
    looked_at_all = True
    names = set()
    for member in _members(pid):
        try:
            names.add(member.name())
            for c in member.net_connections(kind="tcp"):
                if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port:
                    return ""
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        except psutil.AccessDenied:
            looked_at_all = False
    if names & CONTAINER_CLIENTS:
        return ""
    holder = holder_of(port)
    if holder is not None:
        return f"another process, pid {holder}"
    return "a process that we may not look at" if looked_at_all else ""


def holder_of(port: int) -> int | None:
    """The pid of the process that listens on `port`, as far as we may know it."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return None
    for c in connections:
        if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid:
            return int(c.pid)
    return None
