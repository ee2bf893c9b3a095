"""Ports on the loopback: which are free, and who holds one."""

from __future__ import annotations

import socket

import psutil


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


def stranger_on(port: int, pid: int) -> int | None:
    """The pid of a process that holds `port` and does not belong to `pid`'s family.

    None when the family holds it, or when nobody can be named: a port that a container's helper
    holds for its child belongs to another user.
    """
    ours = family(pid)
    for member in ours:
        try:
            for c in member.net_connections(kind="tcp"):
                if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port:
                    return None
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return holder_of(port)


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
