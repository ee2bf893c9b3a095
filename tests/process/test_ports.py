"""Free ports and port owners."""

from __future__ import annotations

import os
import socket

from swapd.process.ports import free_port, port_owner


def test_a_free_port_has_no_owner_and_a_used_one_has() -> None:
    port = free_port()
    assert port_owner(port) is None
    with socket.create_server(("127.0.0.1", port)):
        assert port_owner(port) == os.getpid()
