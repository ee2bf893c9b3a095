"""Asks a running swapd over HTTP."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from typing import Any

import msgspec

from swapd.effects.lock import Holder


class NoAnswerError(Exception):
    """The endpoint does not answer, or not sensibly."""


def get(holder: Holder, path: str, timeout: float = 5.0) -> Any:
    """The JSON at `path` of the swapd that `holder` describes. Raises NoAnswerError."""
    # Without a proxy from the environment: this goes to the machine itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(holder.endpoint + path, timeout=timeout) as answer:
            return msgspec.json.decode(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            said = error.read()
        raise NoAnswerError(_message(said) or f"{error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        raise NoAnswerError(f"{holder.endpoint} does not answer: {error}") from error


def _message(body: bytes) -> str:
    """The sentence in an error of OpenAI's shape; empty when it is none."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return ""
