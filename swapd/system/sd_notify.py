"""State notifications to the service manager, by systemd's protocol (sd_notify)."""

from __future__ import annotations

import logging
import os
import socket

VARIABLE = "NOTIFY_SOCKET"
READY, STOPPING = "READY=1", "STOPPING=1"


class SystemdNotifier:
    """Sender to the service manager's socket; does nothing when swapd runs without one.

    The variable is removed from the environment, because child processes send no notifications.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._address = os.environ.pop(VARIABLE, "")

    def __call__(self, state: str) -> None:
        """Send the state, if there is a service manager."""
        if not self._address:
            return
        # A leading @ marks a socket in the abstract namespace, which is not a file.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(state.encode(), address)
        except OSError as error:
            self._log.warning("the service manager can't be notified: %s", error)
