"""Masks for secrets, such as keys and passwords, in commands and texts that are displayed."""

from __future__ import annotations

import re
from collections.abc import Iterable

MASK = "***"
_NAME = (
    r"(?:[a-z0-9_-]*(?:api[-_]?keys?|token|passw(?:or)?d|passphrase|secret|credentials?)"
    r"|(?:[a-z0-9_-]*[-_])?(?:key|auth|authorization))"
)
"""Names of secrets: flags, variables, headers, fields of an address."""
_VALUE = r"(?!\$\{env\.)(?:\"[^\"]*\"|'[^']*'|[^\s'\"]*[^\s'\",;\]}])"
_FLAG = re.compile(rf"--?{_NAME}|-hft", re.IGNORECASE)
_FLAG_IN_TEXT = re.compile(rf"(?<![^\s'\"])((?:--?{_NAME}|-hft)\s+)(?!-){_VALUE}", re.IGNORECASE)
_ASSIGNED = re.compile(rf"((?:--?)?{_NAME}=).*", re.IGNORECASE | re.DOTALL)
_ASSIGNED_IN_TEXT = re.compile(rf"(?<![a-z0-9_.])(-*{_NAME}=){_VALUE}", re.IGNORECASE)
_HEADER = re.compile(rf"((?:{_NAME}|cookie):).+", re.IGNORECASE | re.DOTALL)
_HEADER_IN_TEXT = re.compile(
    rf"(['\"](?:{_NAME}|cookie)['\"]?:\s*['\"]?)[^'\"]+", re.IGNORECASE | re.DOTALL
)
_KEY_FILE = r"\S+\.(?:pem|key)['\"]?[ \t]*(?:#.*)?$"
"""Path of a certificate's key, as in `tls`: it is not a secret."""
_IN_YAML = re.compile(
    rf"^([ \t]*(?:-[ \t]+)?['\"]?{_NAME}['\"]?:[ \t]+)"
    rf"(?![|>&*{{\[#]|['\"]?\${{env\.|{_KEY_FILE})\S.*",
    re.IGNORECASE | re.MULTILINE,
)
_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def redact_argv(words: Iterable[str]) -> list[str]:
    """Return the words of a command with their secrets masked.

    Secrets are the values of flags such as `--api-key`, of variables such as `HF_TOKEN=` and of
    headers such as `Authorization:`, and the user and password of an address; also within a word
    that is itself a command.
    """
    masked = []
    secret = False
    for word in words:
        if secret and not word.startswith("--"):
            masked.append(MASK)
            secret = False
            continue
        secret = _FLAG.fullmatch(word) is not None
        whole = _ASSIGNED.fullmatch(word) or _HEADER.fullmatch(word)
        masked.append(f"{whole[1]}{MASK}" if whole else redact_text(word))
    return masked


def redact_text(text: str) -> str:
    """Mask the secrets in a text that contains commands, and YAML values with such names."""
    for pattern in (_IN_YAML, _FLAG_IN_TEXT, _ASSIGNED_IN_TEXT, _HEADER_IN_TEXT):
        text = pattern.sub(rf"\g<1>{MASK}", text)
    return _IN_URL.sub(MASK, text)
