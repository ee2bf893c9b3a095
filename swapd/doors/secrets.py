"""Commands as they may be shown: without the keys and passwords that stand in them."""

from __future__ import annotations

import re
from collections.abc import Iterable

MASK = "***"
_NAME = r"(?:api[-_]?keys?|token|passw(?:or)?d|secret)"
_FLAG = re.compile(rf"--?[a-z0-9_-]*{_NAME}|-hft", re.IGNORECASE)
_ASSIGNED = re.compile(rf"((?:--?)?[a-z0-9_-]*(?:{_NAME}|key)=).*", re.IGNORECASE | re.DOTALL)
_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def without_secrets(words: Iterable[str]) -> list[str]:
    """The words of a command, with a mask for what follows a flag such as `--api-key`, for the
    value of a variable such as `HF_TOKEN=`, and for the user and password of an address."""
    shown = []
    secret = False
    for word in words:
        if secret and not word.startswith("--"):
            shown.append(MASK)
            secret = False
            continue
        secret = _FLAG.fullmatch(word) is not None
        assigned = _ASSIGNED.fullmatch(word)
        shown.append(f"{assigned[1]}{MASK}" if assigned else _IN_URL.sub(MASK, word))
    return shown
