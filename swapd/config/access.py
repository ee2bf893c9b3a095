"""Access rules: `keys`, `apiKeys`, `allowed_hosts`, `cors`, `tls` of a configuration. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from collections.abc import Mapping as MappingType
from fnmatch import fnmatchcase

from swapd.config.decode import Diagnostics, decode
from swapd.config.errors import did_you_mean
from swapd.config.schema import KeyConfig, ServerConfig
from swapd.config.yaml_nodes import MappingNode, ScalarNode, node_at
from swapd.domain.models import ModelSpec
from swapd.domain.settings import AccessRules, ApiKey, TlsPaths

HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_HOST = re.compile(r"\*|(?:\*\.)?[a-z0-9](?:[a-z0-9_.-]*[a-z0-9])?")
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+")


def hash_of(key: str) -> str:
    """Return a key in the form of the configuration."""
    return f"sha256:{digest_of(key.encode('utf-8', 'surrogateescape')).hex()}"


def digest_of(key: bytes) -> bytes:
    """Return the SHA-256 sum of a key.

    A fast hash is sufficient: a key is 256 random bits, not a password that could be guessed.
    """
    return hashlib.sha256(key).digest()


def build_access_rules(
    report: Diagnostics,
    server: ServerConfig,
    models: Collection[ModelSpec],
    env: MappingType[str, str],
) -> AccessRules:
    """Build the access rules; problems are added to the report."""
    keys = [*_named(report, models, env), *_plain(report, server)]
    owners: dict[bytes, str] = {}
    for key in keys:
        if owners.setdefault(key.digest, key.name) != key.name:
            report.problem(("keys",), f"{owners[key.digest]} and {key.name} are the same key")
    hosts = [_host(report, i, host) for i, host in enumerate(server.allowed_hosts)]
    origins = [_origin(report, i, o) for i, o in enumerate(server.cors.allowed_origins)]
    return AccessRules(tuple(keys), tuple(hosts), tuple(origins))


def build_tls_paths(report: Diagnostics, server: ServerConfig) -> TlsPaths:
    """Build the paths of the files for HTTPS: both or none."""
    tls = server.tls
    if bool(tls.cert) != bool(tls.key):
        missing = "key" if tls.cert else "cert"
        report.problem(("tls", missing), "is missing: HTTPS needs a certificate and its key")
    return TlsPaths(tls.cert, tls.key)


def _named(
    report: Diagnostics, models: Collection[ModelSpec], env: MappingType[str, str]
) -> list[ApiKey]:
    section = node_at(report.tree, ("keys",))
    if section is None or (isinstance(section, ScalarNode) and section.value is None):
        return []
    if not isinstance(section, MappingNode):
        report.problem(("keys",), "must be a section with a key's name as each key")
        return []
    found = []
    for name, entry in section.entries.items():
        path = ("keys", name)
        if not NAME.fullmatch(name):
            report.problem(path, "a key's name is of A-Z a-z 0-9 _ . -, 64 at most")
        elif not isinstance(entry.node, MappingNode):
            # The value may be a key in plain text, so it is not shown.
            report.problem(path, "must be a section with hash; key add NAME makes one")
        else:
            key = decode(KeyConfig, entry.node, path, report, env)
            match = HASH.fullmatch(key.hash)
            if match is None:
                message = "must be sha256: and 64 hexadecimal digits; key add NAME makes one"
                report.problem((*path, "hash"), message)
                continue
            for i, message in opens_nothing(key.models, models):
                report.warn((*path, "models", i), message)
            digest = bytes.fromhex(match[1])
            found.append(ApiKey(name, digest, tuple(key.models), key.admin, key.rate, key.priority))
    return found


def opens_nothing(
    patterns: Iterable[str], models: Collection[ModelSpec]
) -> Iterator[tuple[int, str]]:
    """Yield the position of each pattern that matches no model, with a warning for its author."""
    names = [name for spec in models for name in (spec.name, *spec.presentation.aliases)]
    for i, pattern in enumerate(patterns):
        if not any(fnmatchcase(name, pattern) for name in names) and pattern != "*":
            yield i, f"there is no model {pattern} now{did_you_mean(pattern, names)}"


def _plain(report: Diagnostics, server: ServerConfig) -> list[ApiKey]:
    """Build llama-swap's `apiKeys`; each gives access to everything, as in llama-swap."""
    found = []
    for i, key in enumerate(server.api_keys):
        if not key.strip() or key != key.strip():
            report.problem(("apiKeys", i), "must be a key, without spaces around it")
        else:
            digest = digest_of(key.encode("utf-8", "surrogateescape"))
            found.append(ApiKey(f"apiKeys[{i}]", digest, admin=True))
    return found


def _host(report: Diagnostics, i: int, host: str) -> str:
    if not _HOST.fullmatch(host.lower()):
        message = f"must be a host's name without a port, such as swapd.example.org, not {host}"
        report.problem(("allowed_hosts", i), message)
    return host.lower()


def _origin(report: Diagnostics, i: int, origin: str) -> str:
    if not _ORIGIN.fullmatch(origin.lower()):
        message = (
            f"must be an origin such as https://chat.example.org, without a path, not {origin}"
        )
        report.problem(("cors", "allowed_origins", i), message)
    return origin.lower()
