"""A local hub: responds as the Hugging Face hub does, and breaks connections on demand."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec


@dataclass
class Hub:
    """Files and behaviour of the hub."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """By repository and name."""
    claims: dict[str, int] = field(default_factory=dict)
    """False sizes by file."""
    sums: dict[str, str] = field(default_factory=dict)
    """False sums by file."""
    break_at: list[int] = field(default_factory=list)
    """Bytes after which the next connections break, one after the other."""
    ranges: list[str] = field(default_factory=list)
    """Requested ranges, in order."""
    holds: list[threading.Event] = field(default_factory=list)
    """Events that release the second half of a file, for the next connections."""
    pointers: bool = True
    """True if it reports the pointers of large files, as the hub does."""
    etags: bool = True
    url: str = ""

    def add(self, repo: str, name: str, content: bytes) -> None:
        self.files.setdefault(repo, {})[name] = content

    def card(self, repo: str) -> dict[str, object]:
        """Return the hub's description of a repository, with the metadata of its files."""
        siblings = []
        for name, content in self.files[repo].items():
            size = self.claims.get(name, len(content))
            sha = self.sums.get(name, hashlib.sha256(content).hexdigest())
            lfs = {"size": size, "sha256": sha}
            if self.pointers:
                lfs["pointerSize"] = 135
            siblings.append({"rfilename": name, "size": size, "blobId": "b", "lfs": lfs})
        return {"id": repo, "modelId": repo, "sha": "0" * 40, "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            self._card("/".join(path.split("/")[3:5]))
            return
        repo, _, name = path.strip("/").partition("/resolve/")
        content = self.hub.files.get(repo, {}).get(name.partition("/")[2])
        if content is None:
            self._send(404, b"")
        else:
            self._file(content)

    def _card(self, repo: str) -> None:
        if repo in self.hub.files:
            self._send(200, msgspec.json.encode(self.hub.card(repo)))
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _file(self, content: bytes) -> None:
        wanted = self.headers.get("Range", "")
        self.hub.ranges.append(wanted)
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        begin = int(wanted[6:-1]) if wanted else 0
        if self.hub.etags and self.headers.get("If-Range", etag) != etag:
            begin = 0
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if self.hub.etags:
            self.send_header("ETag", etag)
        rest = content[begin:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if self.hub.break_at:
            self.wfile.write(rest[: self.hub.break_at.pop(0)])
            self.close_connection = True
        elif self.hub.holds:
            half = len(rest) // 2
            hold = self.hub.holds.pop(0)
            self.wfile.write(rest[:half])
            hold.wait(60)
            self.wfile.write(rest[half:])
        else:
            self.wfile.write(rest)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write no log."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def parts(path: Path) -> list[Path]:
    """Return the leftovers of a broken download of a file."""
    return sorted(path.parent.glob(f"{path.name}.part*"))
