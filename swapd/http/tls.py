"""TLS context of the HTTPS server, and renewal of its certificate."""

from __future__ import annotations

import ssl
from pathlib import Path


class TlsError(Exception):
    """The certificate files can't be used; the message is one sentence."""


def new_context(cert: str, key: str) -> ssl.SSLContext:
    """Return a server's TLS context with the certificate in `cert`. Raises TlsError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    load(context, cert, key)
    return context


def renew(context: ssl.SSLContext, cert: str, key: str) -> None:
    """Use the files' present content for new connections. Raises TlsError and changes nothing."""
    new_context(cert, key)
    load(context, cert, key)


def load(context: ssl.SSLContext, cert: str, key: str) -> None:
    """Load certificate and key into a context. Raises TlsError."""
    for name, file in (("tls.cert", cert), ("tls.key", key)):
        try:
            Path(file).open("rb").close()
        except OSError as error:
            raise TlsError(f"{name}: {file} can't be read: {error.strerror}") from error
    try:
        context.load_cert_chain(cert, key, _reject_password)
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


def _reject_password() -> bytes:
    raise _PasswordError
