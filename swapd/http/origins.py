"""Checks against DNS rebinding and cross-origin requests, by the headers Host and Origin.

A browser lets every web page send requests to this machine. Two headers that a page can't forge
distinguish such a request from a program's. `Origin` is the server of the page. `Host` is the name
in the requested URL: if the owner of a name lets it point to 127.0.0.1 (DNS rebinding), requests
look like same-origin ones, so the name must be one of this server's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping

from swapd.domain.settings import AccessRules, ServerSettings

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/?#\s]*)(?::\d{0,5})?")
PRIVATE_SUFFIXES = (".local", ".internal", ".lan", ".home.arpa", ".localhost")
"""Suffixes of names that can't be registered on the internet, so no attacker controls them."""
CACHE_SIZE = 64
"""Host headers whose check is cached."""


def risks(settings: ServerSettings) -> list[str]:
    """Return warnings about listening on an address that other machines can reach."""
    if is_loopback(settings.host):
        return []
    warnings = []
    if not settings.access.keys:
        warnings.append(
            f"listening on {settings.host}: every client that can reach this address may use all"
            " models, read the logs and running commands, and unload models,"
            " because no API key is set; key add NAME sets one"
        )
    if not settings.tls.cert:
        content = "keys, prompts and answers" if settings.access.keys else "prompts and answers"
        warnings.append(
            f"listening on {settings.host} without TLS: {content} can be read and changed in"
            " transit; set tls, or put a proxy with HTTPS in front"
        )
    return warnings


def is_loopback(host: str) -> bool:
    """Return True if an address or name always means this machine."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def host_name(host: str) -> str:
    """Return the name in a Host header in lower case, without port or brackets; "" if malformed."""
    match = _AUTHORITY.fullmatch(host.strip())
    return match[1].strip("[]").removesuffix(".").lower() if match else ""


def split_target(target: str) -> tuple[str, str]:
    """Split a request's target into authority, which is empty in most, and path with query."""
    if target.startswith("/") or "://" not in target:
        return "", target
    rest = target.partition("://")[2]
    cut = next((i for i, char in enumerate(rest) if char in "/?#"), len(rest))
    return rest[:cut], rest[cut:] if rest[cut:].startswith("/") else f"/{rest[cut:]}"


class OriginPolicy:
    """Rules for Host and Origin headers. Accepted hosts are cached."""

    def __init__(self, loopback: bool, access: AccessRules) -> None:
        self._loopback = loopback
        self._hosts = tuple(access.allowed_hosts)
        self._has_keys = bool(access.keys)
        self._patterns = tuple(_pattern(origin) for origin in access.allowed_origins)
        self._accepted: set[str] = set()

    def allows_host(self, host: str) -> bool:
        """Return True if a Host header names this server."""
        if host in self._accepted:
            return True
        if not self._is_own_name(host_name(host)):
            return False
        if len(self._accepted) < CACHE_SIZE:
            self._accepted.add(host)
        return True

    def _is_own_name(self, name: str) -> bool:
        if is_loopback(name) or _listed(name, self._hosts):
            return True
        if self._loopback or not name:
            return False
        if _address(name) is not None:
            return True
        # With keys a page is rejected anyway, because it has none. Without keys only names that no
        # attacker can let point here are safe.
        is_private = "." not in name or name.endswith(PRIVATE_SUFFIXES)
        return not self._hosts and (self._has_keys or is_private)

    def allows(self, origin: str) -> bool:
        """Return True if pages of this origin may read responses."""
        return any(pattern.fullmatch(origin.lower()) for pattern in self._patterns)

    def foreign_origin(self, headers: Mapping[str, str]) -> str:
        """Return the origin of the foreign page that sent the request; "" if none did."""
        origin = headers.get("Origin")
        if origin is not None:
            host = headers.get("Host", "").lower()
            same = origin.lower() in (f"http://{host}", f"https://{host}")
            return "" if same or self.allows(origin) else origin or "null"
        # Requests for images and links carry no Origin, but they have effects all the same.
        site = headers.get("Sec-Fetch-Site", "none")
        return "" if site in ("none", "same-origin") else "another site"


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _listed(name: str, hosts: Iterable[str]) -> bool:
    return any(
        host in ("*", name) or (host.startswith("*.") and name.endswith(host[1:])) for host in hosts
    )


def _pattern(origin: str) -> re.Pattern[str]:
    """Return a pattern in which `*` alone is any origin, and inside one any label or port."""
    if origin == "*":
        return re.compile(r".*")
    return re.compile(r"[^./:]*".join(re.escape(part) for part in origin.split("*")))
