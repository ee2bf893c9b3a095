"""Keeps web pages away from a worker that belongs to a supervisor.

A page in a browser on this machine can send requests to any local port, and read the answers if a
name of its own resolves to this machine. The supervisor judges hosts and origins before it passes
a request on, and takes the origin out; so whatever comes with one did not come through it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from workers.errors import ApiError

STRAYED = frozenset({"cross-site", "same-site"})


def refuse_pages(headers: Mapping[str, str]) -> None:
    """Raises ApiError 403 for what a web page sent."""
    if "Origin" in headers or headers.get("Sec-Fetch-Site") in STRAYED:
        raise ApiError(403, "This worker answers no web page: ask swapd.", "permission_error")
    host = headers.get("Host", "")
    if not _is_address(host):
        sentence = f"This worker is not known as {host!r}: ask swapd, or call it by its address."
        raise ApiError(403, sentence, "permission_error")


def _is_address(host: str) -> bool:
    """Whether `host` is no name that somebody else could have made resolve to this machine."""
    name = host.rpartition(":")[0] if host[-1:].isdigit() and ":" in host else host
    if name.lower() in ("localhost", ""):
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
