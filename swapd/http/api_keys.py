"""API keys: what a request shows, whose key it is, and what that key opens."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from hmac import compare_digest
from types import MappingProxyType
from typing import NamedTuple

from aiohttp import web

from swapd.config.access import digest_of
from swapd.domain.model_names import ModelNames
from swapd.domain.models import Catalog, ModelSpec
from swapd.domain.settings import ApiKey

BASIC_LONGEST = 1024
"""Characters in which user and key of Basic have room enough."""


class PermissionDeniedError(Exception):
    """A key does not open what was asked for; the message is for the client."""


class RateLimiter:
    """How many requests a minute: as many at once, then one every so often."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._left = float(rate)
        self._since: float | None = None

    def take(self, now: float) -> float:
        """Seconds to wait until the next one is due; 0 when one is, which is then taken."""
        if self._since is not None:
            self._left = min(self.rate, self._left + (now - self._since) * self.rate / 60)
        self._since = now
        if self._left < 1:
            return (1 - self._left) * 60 / self.rate
        self._left -= 1
        return 0.0


class Principal:
    """What the holders of one key may do."""

    def __init__(self, key: ApiKey, pace: RateLimiter | None = None) -> None:
        self.key = key
        self.pace = pace or RateLimiter(key.rate)
        self.all_models = key.admin or "*" in key.models
        self._catalog: Catalog | None = None
        self._names = ModelNames(Catalog())

    def opens(self, spec: ModelSpec) -> bool:
        """Whether the key is good for this model, by its name or an alias."""
        names = (spec.name, *spec.presentation.aliases)
        return self.all_models or any(
            fnmatchcase(name, pattern) for pattern in self.key.models for name in names
        )

    def names(self, catalog: Catalog) -> ModelNames:
        """The names of the models that the key is good for: of others its holder is not told."""
        if self._catalog is not catalog:
            opened = {m.name: m for m in catalog.models.values() if self.opens(m)}
            self._catalog, self._names = catalog, ModelNames(Catalog(MappingProxyType(opened)))
        return self._names


class Authenticated(NamedTuple):
    """Whose key was shown, and in which headers one of ours stands."""

    grant: Principal
    headers: tuple[str, ...]


AUTHENTICATED: web.RequestKey[Authenticated] = web.RequestKey("opened", Authenticated)
"""Where a request keeps what its key has opened; nothing is there when nobody needs a key."""


def principal_of(request: web.Request) -> Principal | None:
    """What the request's key opens; None where nobody needs one."""
    opened = request.get(AUTHENTICATED)
    return opened.grant if opened is not None else None


class KeyStore:
    """All keys. A key is looked for by its sum, in a time that does not depend on which it is."""

    def __init__(self, keys: Iterable[ApiKey], before: KeyStore | None = None) -> None:
        self._grants = [Principal(key, _pace(key, before)) for key in keys]
        self.nobody_needs_one = not self._grants

    @property
    def grants(self) -> list[Principal]:
        return list(self._grants)

    def open(self, headers: Mapping[str, str]) -> Authenticated | None:
        """The grant of the key that the headers show; None when they show none that is ours.

        What is compared are sums, each with all keys and to the end, also when nothing is shown.
        """
        shown = presented_key(headers)
        opened: Authenticated | None = None
        for header, key in shown or (("", b""),):
            digest = digest_of(key)
            for grant in self._grants:
                if compare_digest(digest, grant.key.digest):
                    others = opened.headers if opened is not None else ()
                    opened = Authenticated(grant, (*others, header))
        return opened if shown else None


def presented_key(headers: Mapping[str, str]) -> list[tuple[str, bytes]]:
    """The keys that a request shows, each with its header: one of them has to fit."""
    found = []
    scheme, _, rest = headers.get("Authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer":
        found.append(("Authorization", _encoded(rest.strip())))
    elif scheme.lower() == "basic":
        found.append(("Authorization", _password(rest.strip())))
    if (key := headers.get("x-api-key")) is not None:
        found.append(("x-api-key", _encoded(key.strip())))
    return found


def _password(encoded: str) -> bytes:
    """The password of HTTP's Basic scheme; nothing when it is malformed."""
    if len(encoded) > BASIC_LONGEST:
        return b""
    try:
        return base64.b64decode(_encoded(encoded), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _pace(key: ApiKey, before: KeyStore | None) -> RateLimiter | None:
    """A key that stays keeps what it has used up, also over a reload."""
    for grant in before.grants if before is not None else ():
        if (grant.key.digest, grant.key.rate) == (key.digest, key.rate):
            return grant.pace
    return None
