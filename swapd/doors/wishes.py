"""What a request says besides what the worker is to do: for whom it is, how to treat it."""

from __future__ import annotations

import math
import re

import msgspec
from aiohttp import web

from swapd.doors.keys import grant_of
from swapd.lease import Wish

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION = re.compile(r"(-?)((?:\d+(?:\.\d+)?(?:ms|s|m|h))+)")
PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")


class Named(msgspec.Struct):
    """The fields of a body that routing needs; all others are skipped over."""

    model: object = None
    user: object = None
    keep_alive: object = None
    stream: object = None


decode = msgspec.json.Decoder(Named).decode


def of(request: web.Request, named: Named) -> Wish:
    """The wish in headers and body. Raises ValueError with a sentence.

    The tenant is `X-Tenant-Id`, else the body's `user` as OpenAI has it. `keep_alive` is Ollama's.
    The priority is the key's: what a request could ask for itself, everybody would.
    """
    user = named.user if isinstance(named.user, str) else ""
    keep_alive = None if named.keep_alive is None else seconds(named.keep_alive)
    return Wish(tenant_of(request, user), keep_alive, priority_of(request))


def tenant_of(request: web.Request, user: str = "") -> str:
    """For whom a request is. A key speaks for tenants of its own: it can't crowd another's."""
    tenant = (request.headers.get("X-Tenant-Id", "") or user)[:256]
    grant = grant_of(request)
    return tenant if grant is None else f"{grant.key.name}/{tenant}"


def priority_of(request: web.Request) -> int:
    """That of the key which the request shows."""
    grant = grant_of(request)
    return grant.key.priority if grant is not None else 0


def seconds(value: object) -> float:
    """Ollama's `keep_alive`: seconds as a number or as text, or a duration such as `1h30m`.

    Negative: for ever. Raises ValueError.
    """
    try:
        found = _seconds(value)
    except OverflowError:
        found = math.inf
    if found is None:
        told = "'keep_alive' must be seconds or a duration such as \"5m\", negative for ever"
        raise ValueError(told)
    if not math.isfinite(found):
        raise ValueError("'keep_alive' is too large a number: what is negative means for ever")
    return found


def _seconds(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"-?\d+(?:\.\d+)?", text):
            return float(text)
        if whole := DURATION.fullmatch(text):
            total = sum(float(n) * UNITS[unit] for n, unit in PART.findall(whole[2]))
            return -total if whole[1] else total
    return None
