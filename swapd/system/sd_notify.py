"""Tells the service manager how it stands, by systemd's protocol (sd_notify)."""

from __future__ import annotations

import logging
import os
import socket

VARIABLE = "NOTIFY_SOCKET"
READY, STOPPING = "READY=1", "STOPPING=1"


class SystemdNotifier:
    """Where a service manager listens; nobody does where none has started us.

    The variable is taken out of the environment: what we start has nothing to tell.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._address = os.environ.pop(VARIABLE, "")

    def __call__(self, word: str) -> None:
        """Send the word, if anybody listens."""
        if not self._address:
            return
        # A name that begins with @ is one that no file has.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(word.encode(), address)
        except OSError as error:
            self._log.warning("the service manager is not told: %s", error)
