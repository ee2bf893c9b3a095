"""API keys: authentication of requests, permissions of a key, and its rate limit."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from hmac import compare_digest
from typing import NamedTuple

from aiohttp import web

from swapd.config.access import digest_of
from swapd.domain.model_names import ModelNames, ModelNamesCache
from swapd.domain.models import Catalog, ModelSpec
from swapd.domain.settings import ApiKey

MAX_BASIC_LENGTH = 1024
"""Characters of the credentials of HTTP's Basic scheme; longer ones are not decoded."""


class PermissionDeniedError(Exception):
    """A key does not permit the request; the message is for the client."""


class RateLimiter:
    """A token bucket: a minute's requests as one burst, then requests at an even rate."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        """Requests per minute."""
        self._tokens = float(rate)
        self._updated: float | None = None

    def take(self, now: float) -> float:
        """Take a token and return 0, or return the seconds until one is available."""
        if self._updated is not None:
            refill = (now - self._updated) * self.rate / 60
            self._tokens = min(self.rate, self._tokens + refill)
        self._updated = now
        if self._tokens < 1:
            return (1 - self._tokens) * 60 / self.rate
        self._tokens -= 1
        return 0.0


class Principal:
    """An API key with its permissions and its rate limiter."""

    def __init__(self, key: ApiKey, rate_limiter: RateLimiter | None = None) -> None:
        self.key = key
        self.rate_limiter = rate_limiter or RateLimiter(key.rate)
        self.all_models = key.admin or "*" in key.models
        """True if the key permits every model."""
        self._names = ModelNamesCache(self.permits)

    def permits(self, spec: ModelSpec) -> bool:
        """Return True if the key permits this model, by its name or an alias."""
        names = (spec.name, *spec.presentation.aliases)
        return self.all_models or any(
            fnmatchcase(name, pattern) for pattern in self.key.models for name in names
        )

    def names(self, catalog: Catalog) -> ModelNames:
        """Return the names of the permitted models in `catalog`."""
        return self._names.of(catalog)


class Authenticated(NamedTuple):
    """The principal of a request, and the headers that held its key or another valid key."""

    principal: Principal
    headers: tuple[str, ...]


AUTHENTICATED: web.RequestKey[Authenticated] = web.RequestKey("authenticated", Authenticated)
"""Key of a request's authentication; absent if the server requires no keys."""


def principal_of(request: web.Request) -> Principal | None:
    """Return the principal of a request, or None if the server requires no keys."""
    authenticated = request.get(AUTHENTICATED)
    return authenticated.principal if authenticated is not None else None


class KeyStore:
    """All configured keys, by digest. A lookup takes the same time for every key."""

    def __init__(self, keys: Iterable[ApiKey], previous: KeyStore | None = None) -> None:
        """Take over the rate limiters of unchanged keys from `previous`, across a reload."""
        self.principals = [Principal(key, _rate_limiter_of(key, previous)) for key in keys]

    @property
    def is_empty(self) -> bool:
        """True if no key is configured, so that requests need none."""
        return not self.principals

    def authenticate(self, headers: Mapping[str, str]) -> Authenticated | None:
        """Return the principal whose key the headers present, or None without a valid key.

        Each presented key is compared by digest with all keys, to the end, even if none is
        presented: the time reveals nothing.
        """
        presented = presented_keys(headers)
        authenticated: Authenticated | None = None
        for header, key in presented or (("", b""),):
            digest = digest_of(key)
            for principal in self.principals:
                if compare_digest(digest, principal.key.digest):
                    others = authenticated.headers if authenticated is not None else ()
                    authenticated = Authenticated(principal, (*others, header))
        return authenticated if presented else None


def presented_keys(headers: Mapping[str, str]) -> list[tuple[str, bytes]]:
    """Return the keys that a request presents, each with its header. One of them must be valid."""
    keys = []
    scheme, _, rest = headers.get("Authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer":
        keys.append(("Authorization", _encoded(rest.strip())))
    elif scheme.lower() == "basic":
        keys.append(("Authorization", _basic_password(rest.strip())))
    if (key := headers.get("x-api-key")) is not None:
        keys.append(("x-api-key", _encoded(key.strip())))
    return keys


def _basic_password(credentials: str) -> bytes:
    """Return the password of HTTP's Basic scheme; empty if the credentials are malformed."""
    if len(credentials) > MAX_BASIC_LENGTH:
        return b""
    try:
        return base64.b64decode(_encoded(credentials), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _rate_limiter_of(key: ApiKey, previous: KeyStore | None) -> RateLimiter | None:
    for principal in previous.principals if previous is not None else ():
        if (principal.key.digest, principal.key.rate) == (key.digest, key.rate):
            return principal.rate_limiter
    return None
