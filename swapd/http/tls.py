"""Certificates for HTTPS."""

from __future__ import annotations

import ssl
from pathlib import Path


class TlsError(Exception):
    """The files can't be used for HTTPS: one sentence."""


def new_context(cert: str, key: str) -> ssl.SSLContext:
    """A server's side of TLS with the certificate in `cert`. Raises TlsError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    load(context, cert, key)
    return context


def renew(context: ssl.SSLContext, cert: str, key: str) -> None:
    """Have new connections use what is in the files now. Raises TlsError, and changes nothing."""
    new_context(cert, key)
    load(context, cert, key)


def load(context: ssl.SSLContext, cert: str, key: str) -> None:
    """Take up certificate and key. Raises TlsError."""
    for name, file in (("tls.cert", cert), ("tls.key", key)):
        try:
            Path(file).open("rb").close()
        except OSError as error:
            raise TlsError(f"{name}: {file} can't be read: {error.strerror}") from error
    try:
        context.load_cert_chain(cert, key, _no_password)
    except _PasswordError as error:
        raise TlsError(f"tls.key: {key} has a password; swapd needs one without") from error
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            message = f"tls.key: {key} does not belong to the certificate in {cert}"
        else:
            message = f"tls: {cert} and {key} must be a certificate and its key in PEM"
        raise TlsError(message) from error


class _PasswordError(Exception):
    pass


def _no_password() -> bytes:
    raise _PasswordError
