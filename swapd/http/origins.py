"""From where a request may come: the Host it calls us by, and the Origin of the page that made it.

A browser lets every web page send requests to this machine. Two headers that a page can't forge
tell such a request from a program's. `Origin` names the page's own server. `Host` is the name that
the page called: one that its owner lets point to 127.0.0.1 (DNS rebinding) makes a request look
like one of the same origin, so a name must be ours.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping

from swapd.domain.settings import AccessRules, ServerSettings

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/?#\s]*)(?::\d{0,5})?")
NOBODYS = (".local", ".internal", ".lan", ".home.arpa", ".localhost")
"""Ends of names that nobody can own on the internet, and so can't let point to us."""
REMEMBERED = 64


def risks(settings: ServerSettings) -> list[str]:
    """What an operator should know of the address that is listened on."""
    if is_loopback(settings.host):
        return []
    where = f"listening on {settings.host}: whoever reaches this address"
    told = []
    if not settings.access.keys:
        told.append(
            f"{where} may use every model, read the logs and running commands, and unload models,"
            " because no API key is set; key add NAME sets one"
        )
    if not settings.tls.cert:
        what = "keys, prompts and answers" if settings.access.keys else "prompts and answers"
        told.append(
            f"listening on {settings.host} without TLS: {what} can be read and changed on the way;"
            " set tls, or put a proxy with HTTPS in front"
        )
    return told


def is_loopback(host: str) -> bool:
    """Whether an address or name can only mean this machine itself."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def name_in(host: str) -> str:
    """The name in a Host header, in small letters, without port or brackets; empty if malformed."""
    match = _AUTHORITY.fullmatch(host.strip())
    return match[1].strip("[]").removesuffix(".").lower() if match else ""


def split_target(target: str) -> tuple[str, str]:
    """A request's target as authority, which most leave empty, and path with query."""
    if target.startswith("/") or "://" not in target:
        return "", target
    rest = target.partition("://")[2]
    cut = next((i for i, char in enumerate(rest) if char in "/?#"), len(rest))
    return rest[:cut], rest[cut:] if rest[cut:].startswith("/") else f"/{rest[cut:]}"


class OriginPolicy:
    """Which hosts and origins are let in. What was let in once is known without another look."""

    def __init__(self, loopback: bool, access: AccessRules) -> None:
        self._loopback = loopback
        self._hosts = tuple(access.allowed_hosts)
        self._keyed = bool(access.keys)
        self._patterns = tuple(_pattern(origin) for origin in access.allowed_origins)
        self._known: set[str] = set()

    def knows_host(self, host: str) -> bool:
        """Whether the Host header is one of ours."""
        if host in self._known:
            return True
        if not self._is_ours(name_in(host)):
            return False
        if len(self._known) < REMEMBERED:
            self._known.add(host)
        return True

    def _is_ours(self, name: str) -> bool:
        if is_loopback(name) or _listed(name, self._hosts):
            return True
        if self._loopback or not name:
            return False
        if _address(name) is not None:
            return True
        # Without a key, what reaches us is all there is to prove. With keys, a page has none.
        nobodys = "." not in name or name.endswith(NOBODYS)
        return not self._hosts and (self._keyed or nobodys)

    def allows(self, origin: str) -> bool:
        """Whether pages of this origin may read what they ask for."""
        return any(pattern.fullmatch(origin.lower()) for pattern in self._patterns)

    def stranger(self, headers: Mapping[str, str]) -> str:
        """The origin of the foreign page that made the request; empty when none did."""
        origin = headers.get("Origin")
        if origin is not None:
            same = origin.lower().partition("://")[2] == headers.get("Host", "").lower()
            return "" if same or self.allows(origin) else origin or "null"
        # Where a page only wants the effect (an image, a link), there is no Origin.
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
    """`*` alone is any origin; within one it is any text of one label, or a port."""
    if origin == "*":
        return re.compile(r".*")
    return re.compile(r"[^./:]*".join(re.escape(part) for part in origin.split("*")))
