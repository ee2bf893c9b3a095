"""Worker that measures the time from its readiness to the first byte of a request."""

from __future__ import annotations

import json
import os
import socket
import time


def main() -> None:
    """Report readiness, receive one request, answer with the seconds, and wait for the end."""
    server = socket.create_server(("127.0.0.1", 0))
    word = {"ready": True, "host": "127.0.0.1", "port": server.getsockname()[1], "slots": 1}
    line = json.dumps(word).encode() + b"\n"
    began = time.perf_counter()
    os.write(int(os.environ["SWAPD_READY_FD"]), line)
    connection, _ = server.accept()
    connection.recv(65536)
    body = f"{time.perf_counter() - began:.6f}".encode()
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    connection.sendall(head + body)
    connection.close()
    os.read(0, 1)


if __name__ == "__main__":
    main()
