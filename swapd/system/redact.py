"""Commands as they may be shown: without the keys and passwords that stand in them."""

from __future__ import annotations

import re
from collections.abc import Iterable

MASK = "***"
_NAME = (
    r"(?:[a-z0-9_-]*(?:api[-_]?keys?|token|passw(?:or)?d|passphrase|secret|credentials?)"
    r"|(?:[a-z0-9_-]*[-_])?(?:key|auth|authorization))"
)
"""Words that name a secret: flags, variables, headers, fields of an address."""
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
"""The path of a certificate's key, as `tls` has it, is no secret."""
_IN_YAML = re.compile(
    rf"^([ \t]*(?:-[ \t]+)?['\"]?{_NAME}['\"]?:[ \t]+)"
    rf"(?![|>&*{{\[#]|['\"]?\${{env\.|{_KEY_FILE})\S.*",
    re.IGNORECASE | re.MULTILINE,
)
_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def redact_argv(words: Iterable[str]) -> list[str]:
    """The words of a command, with a mask for what follows a flag such as `--api-key`, for the
    value of a variable such as `HF_TOKEN=` or of a header such as `Authorization:`, and for the
    user and password of an address; also where a word is a command itself."""
    shown = []
    secret = False
    for word in words:
        if secret and not word.startswith("--"):
            shown.append(MASK)
            secret = False
            continue
        secret = _FLAG.fullmatch(word) is not None
        whole = _ASSIGNED.fullmatch(word) or _HEADER.fullmatch(word)
        shown.append(f"{whole[1]}{MASK}" if whole else redact_text(word))
    return shown


def redact_text(text: str) -> str:
    """The same for a text in which there are commands, and for values in YAML with such names."""
    for pattern in (_IN_YAML, _FLAG_IN_TEXT, _ASSIGNED_IN_TEXT, _HEADER_IN_TEXT):
        text = pattern.sub(rf"\g<1>{MASK}", text)
    return _IN_URL.sub(MASK, text)
